"""Advantages: from the rewards of answers to the credit of each token."""
