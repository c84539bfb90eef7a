"""Judged answers: preference pairs (one record, two rows that stay together) and answers with a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy

from luthier.data.shapes import label_of, shape_part
from luthier.types import Record, Row, Stream

SIDES = ("chosen", "rejected")


def rows_of(record: Record, rows: Sequence[Row]) -> tuple[Row, ...]:
    """A record's rendered rows under its id: one with its label, if it has one, or one of each of its answers."""
    part = shape_part(record.shape)
    if part is None:
        return rows_of_record(record.id, rows, label_of(record))
    names = [name for name, _ in part.sides(record)]
    return as_sides(record.id, rows, names, part.streams(record))


def rows_of_record(record: str, rows: Sequence[Row], label: bool | None = None) -> tuple[Row, ...]:
    """The rows of a record under its id: one row with its label, if it has one; two as the sides of a pair."""
    if len(rows) == 1 and label is None:
        return (replace(rows[0], id=record, record=record),)
    if len(rows) == 1:
        return (
            replace(rows[0], id=record, record=record, streams={**rows[0].streams, "preferred": _preferred(label)}),
        )
    return as_sides(record, rows, SIDES, ({}, {}))


def as_sides(
    record: str, rows: Sequence[Row], names: Sequence[str], streams: Sequence[Mapping[str, Stream]]
) -> tuple[Row, ...]:
    """One row for each answer to a record, which stay together; the first is the preferred one."""
    return tuple(
        replace(
            row,
            id=f"{record}/{name}",
            record=record,
            streams={**row.streams, "preferred": _preferred(index == 0), **more},
        )
        for index, (row, name, more) in enumerate(zip(rows, names, streams, strict=True))
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
            streams = {name: stream for name, stream in row.streams.items() if stream.axis == "token"}
            kept.append(replace(row, id=row.record, streams=streams))
    return kept
