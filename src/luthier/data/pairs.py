"""Preference pairs: one record, two rows that stay together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy

from luthier.types import Record, Row, Stream

SIDES = ("chosen", "rejected")


def sides_of(record: Record) -> tuple[Record, Record]:
    """The record with its chosen answer as the answer, and with its rejected one."""
    chosen, rejected = (replace(record, fields={**record.fields, "chosen": record.fields[side]}) for side in SIDES)
    return chosen, rejected


def as_atom(record: str, rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows of a record under its id: one row as it is; two as the chosen and the rejected side of a pair."""
    if len(rows) == 1:
        return (replace(rows[0], record=record),)
    return tuple(
        replace(
            row,
            record=f"{record}/{side}",
            part_of=record,
            streams={**row.streams, "preferred": Stream(numpy.float32(side == "chosen"), "row")},
        )
        for side, row in zip(SIDES, rows, strict=True)
    )


def is_paired(row: Row) -> bool:
    """Whether the row is one side of a pair."""
    return "preferred" in row.streams


def without_rejected(rows: Sequence[Row]) -> list[Row]:
    """Each record with its chosen answer alone, as rows that stand for themselves."""
    kept = []
    for row in rows:
        if not is_paired(row):
            kept.append(row)
        elif row.streams["preferred"].values == 1:
            streams = {name: stream for name, stream in row.streams.items() if name != "preferred"}
            kept.append(replace(row, record=row.atom, part_of="", streams=streams))
    return kept
