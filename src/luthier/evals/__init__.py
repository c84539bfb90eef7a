"""Metrics, the evaluation of a model on records, and retention."""
