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
        """The columns with both answers, and the prompt if there is one, checked to be text or messages."""
        checked = {"prompt": None, **fields}
        names = [*self.COLUMNS] if checked["prompt"] is None else [*self.COLUMNS, "prompt"]
        for name in names:
            checked[name] = text_or_messages(checked[name], name, self.kind, origin)
        return checked

    def sides(self, record: Record) -> tuple[tuple[str, Record], ...]:
        """The record with its chosen answer in `chosen`, and with its rejected one there."""
        sides = []
        for side in self.COLUMNS:
            fields = {**record.fields, "chosen": record.fields[side]}
            sides.append((side, replace(record, fields=fields)))
        return tuple(sides)
