"""Preference pairs: a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from luthier.data.forms.base import RecordShape
from luthier.data.shapes import text_or_messages
from luthier.types import Record


class Preference(RecordShape):
    """One prompt with the answer that is preferred and one that is not, as TRL writes them."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    FORM: ClassVar[str] = "pairs"

    def read(self, fields: Mapping[str, Any], origin: str) -> dict[str, Any]:
        """Both answers and the prompt, if there is one, as text or messages."""
        read = {"prompt": None, **fields}
        for name in (*self.COLUMNS, *(("prompt",) if read["prompt"] is not None else ())):
            read[name] = text_or_messages(read[name], name, self.kind, origin)
        return read

    def sides(self, record: Record) -> tuple[tuple[str, Record], ...]:
        """The record with its chosen answer as the answer, and with its rejected one."""
        return tuple(
            (side, replace(record, fields={**record.fields, "chosen": record.fields[side]})) for side in self.COLUMNS
        )
