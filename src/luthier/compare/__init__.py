"""Same-budget runs of many methods, and what they show."""

from luthier.compare.job import compare

__all__ = ["compare"]
