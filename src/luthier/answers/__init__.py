"""Readers of answers: mathematical formulas, and choices by text, letter or index. Nothing here imports torch."""
