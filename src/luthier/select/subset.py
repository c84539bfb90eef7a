"""The former module of `Subset`, for users' parts that import it from here."""

from __future__ import annotations

from luthier.select.records.base import Columns, Subset, by_record

__all__ = ["Columns", "Subset", "by_record"]
