"""Data sets of pictures, drawn from a seed: rows of arrays instead of records of text."""
