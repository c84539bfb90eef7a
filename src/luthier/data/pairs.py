"""Judged answers: preference pairs (one record, two rows that stay together) and answers with a label."""

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


def rows_of_record(record: str, rows: Sequence[Row], label: bool | None = None) -> tuple[Row, ...]:
    """The rows of a record under its id: one row with its label, if it has one; two as the sides of a pair."""
    if len(rows) == 1 and label is None:
        return (replace(rows[0], id=record, record=record),)
    if len(rows) == 1:
        return (
            replace(rows[0], id=record, record=record, streams={**rows[0].streams, "preferred": _preferred(label)}),
        )
    return tuple(
        replace(
            row,
            id=f"{record}/{side}",
            record=record,
            streams={**row.streams, "preferred": _preferred(side == "chosen")},
        )
        for side, row in zip(SIDES, rows, strict=True)
    )


def _preferred(good: bool | None) -> Stream:
    return Stream(numpy.float32(good), "row")


def is_judged(row: Row) -> bool:
    """Whether the row's answer is known to be good or bad: a side of a pair, or labelled."""
    return "preferred" in row.streams


def is_paired(row: Row) -> bool:
    """Whether the row is one side of a pair."""
    return is_judged(row) and row.record != row.id


def without_rejected(rows: Sequence[Row]) -> list[Row]:
    """Each record with its good answer alone, as rows that stand for themselves; none of a record without one."""
    kept = []
    for row in rows:
        if not is_judged(row):
            kept.append(row)
        elif row.streams["preferred"].values == 1:
            streams = {name: stream for name, stream in row.streams.items() if name != "preferred"}
            kept.append(replace(row, id=row.record, streams=streams))
    return kept
