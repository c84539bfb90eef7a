"""Strategies: which answers to a prompt are sampled, in rounds."""
