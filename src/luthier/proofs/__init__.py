"""Proofs: claims about each method, written before it was run, and the results of the runs."""
