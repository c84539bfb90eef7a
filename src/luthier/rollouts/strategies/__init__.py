"""Strategies: which continuations of one prompt are asked for, round after round."""
