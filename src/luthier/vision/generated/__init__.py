"""Data sets of pictures, drawn from a seed."""
