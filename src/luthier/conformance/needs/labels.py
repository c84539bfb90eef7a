"""Rows for objectives that need answers labelled good or bad."""

from __future__ import annotations

from luthier.conformance.tiny import tiny_labelled as rows

__all__ = ["rows"]
