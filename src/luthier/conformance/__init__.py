"""The conformance matrix: what every part of a slot must pass, and what works with what."""
