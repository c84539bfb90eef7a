"""The update and all that makes it exact: precision, budget, distribution, checkpoints, memory.

The engine moves, splits and counts streams by axis and never by name; it knows no method and no modality.
This package imports levels 0 to 2 only.
"""
