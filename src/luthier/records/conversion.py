"""The reading of one record: what it knows of the file, and notes on what it changed."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Conversion:
    """The reading of one record: its tools, whether its file pads objects with nulls, and notes on what was changed.

    Attributes:
        columnar: whether the record is from a columnar file, such as Parquet.
        schemas: name of a tool → the JSON schema of its arguments.
        inner: role or content → the user's name of that key of a message.
        notes: the changes, without repetition, in order.
    """

    columnar: bool = False
    schemas: Mapping[str, Any] = field(default_factory=dict)
    inner: Mapping[str, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def note(self, text: str) -> None:
        """Add a note on this record."""
        self.notes[text] = None


def literal_in(text: str) -> Any:
    """What a text holds as JSON or, as pandas writes lists into CSV, as a literal of Python; None if neither."""
    parsed = json_in(text)
    if parsed is not None:
        return parsed
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def json_in(text: str) -> Any:
    """What a text holds as JSON; None if it is none, or null."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def short(content: Any) -> str:
    text = repr(content)
    return text if len(text) <= 80 else f"{text[:77]}..."
