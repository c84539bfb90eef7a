"""Readers of answers: mathematical formulas. Nothing here imports torch."""
