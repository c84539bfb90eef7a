"""Rows for objectives that need pairs of a chosen and a rejected answer."""

from __future__ import annotations

from luthier.conformance.tiny import tiny_pairs as rows

__all__ = ["rows"]
