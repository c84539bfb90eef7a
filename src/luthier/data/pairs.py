"""Rows of judged answers: preference pairs (two rows of one record, never separated) and labelled answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy

from luthier.data.shapes import label_of, shape_part
from luthier.types import Record, Row, Stream

SIDES = ("chosen", "rejected")


def rows_of(record: Record, rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rendered rows of a record under its id: one row, with the label if there is one, or one for each answer."""
    part = shape_part(record.shape)
    if part is None:
        return rows_of_record(record.id, rows, label_of(record))
    names = [name for name, _ in part.sides(record)]
    return as_sides(record.id, rows, names, part.streams(record))


def rows_of_record(record: str, rows: Sequence[Row], label: bool | None = None) -> tuple[Row, ...]:
    """The rows of a record under its id: one row, with the label if there is one, or two as the sides of a pair."""
    if len(rows) == 1 and label is None:
        return (replace(rows[0], id=record, record=record),)
    if len(rows) == 1:
        streams = {**rows[0].streams, "preferred": _preferred(label)}
        return (replace(rows[0], id=record, record=record, streams=streams),)
    return as_sides(record, rows, SIDES, ({}, {}))


def as_sides(
    record: str, rows: Sequence[Row], names: Sequence[str], streams: Sequence[Mapping[str, Stream]]
) -> tuple[Row, ...]:
    """The rows of several answers to one record, called `record/name`; the first answer is the preferred one."""
    sides = []
    for index, (row, name, more) in enumerate(zip(rows, names, streams, strict=True)):
        row_streams = {**row.streams, "preferred": _preferred(index == 0), **more}
        sides.append(replace(row, id=f"{record}/{name}", record=record, streams=row_streams))
    return tuple(sides)


def _preferred(good: bool | None) -> Stream:
    return Stream(numpy.float32(good), "row")


def is_judged(row: Row) -> bool:
    """Whether the row's answer is known to be good or bad: a side of a pair, or labelled."""
    return "preferred" in row.streams


def is_paired(row: Row) -> bool:
    """Whether the row is one side of a pair."""
    return is_judged(row) and row.record != row.id


def without_rejected(rows: Sequence[Row]) -> list[Row]:
    """The good answer of each record as a row that is no side of a pair; a record without one has no row."""
    kept = []
    for row in rows:
        if not is_judged(row):
            kept.append(row)
        elif row.streams["preferred"].values == 1:
            # Row streams describe the answer as one of several, which it no longer is.
            streams = {name: stream for name, stream in row.streams.items() if stream.axis == "token"}
            kept.append(replace(row, id=row.record, streams=streams))
    return kept
