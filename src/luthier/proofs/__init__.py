"""Proofs: what each method is claimed to do, written before it was run, and what was then seen."""
