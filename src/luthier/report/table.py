"""The table of a comparison, as text cells that every format lays out in its own way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.report.numbers import NONE, count, gigabytes, interval, minutes, p_value, percent, points, rate, signed
from luthier.report.sentences import Results, other_tokens, speed_title

OTHER = 6
"""Where the tokens that were no training stand: behind the speed, if there are any."""

VERDICTS = {
    ("differs", "methods"): "differs",
    ("differs", "models"): "models differ",
    ("n.s.", "methods"): "n.s.",
    ("n.s.", "models"): "n.s.",
}


@dataclass(frozen=True)
class TableCell:
    """One cell: what is said and, smaller, what it rests on. `tone` is good, bad, quiet or empty."""

    text: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Titles, and rows of cells below them; the first column is text, all others are numbers."""

    titles: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]


def build_table(results: Results, narrow: bool = False) -> Table:
    """The rows in the order of the plan: the untrained model first, then the methods. `narrow` leaves the tokens that
    were no training to the notes.
    """
    titles = ["method", "target", f"change vs {results['baseline']}", "retain", "net"]
    titles += [speed_title(results), "peak GB", "min", "lr"]
    rows = [_row(row, results) for row in results["rows"]]
    other = [other_tokens(row) for row in results["rows"]]
    if any(other) and not narrow:
        titles.insert(OTHER, "other tok")
        for cells, value in zip(rows, other, strict=True):
            cells.insert(OTHER, TableCell(count(value or None)))
    return Table(tuple(titles), tuple(tuple(cells) for cells in rows))


def _row(row: Mapping[str, Any], results: Results) -> list[TableCell]:
    cost = row["cost"] or {}
    return [
        TableCell(row["label"], _missing(row, results), "bad" if row["failed"] else ""),
        _target(row["target"]),
        _change(row["change"], row),
        *_retain(row),
        TableCell(count(cost.get("tokens_per_second"))),
        TableCell(gigabytes(cost.get("peak_memory_bytes"))),
        TableCell(minutes(cost.get("train_seconds"))),
        TableCell(rate(row["learning_rate"])),
    ]


def _missing(row: Mapping[str, Any], results: Results) -> str:
    if not row["failed"]:
        return ""
    runs = 1 if row["kind"] == "base" else len(results["seeds"])
    return "failed" if row["failed"] == runs else f"{row['failed']} of {runs} runs failed"


def _target(found: Mapping[str, Any] | None) -> TableCell:
    return TableCell(NONE) if found is None else TableCell(points(found["mean"]), interval(found["low"], found["high"]))


def _change(found: Mapping[str, Any] | None, row: Mapping[str, Any]) -> TableCell:
    if found is None:
        return TableCell(NONE)
    if found["verdict"] == "baseline":
        return TableCell("baseline" if row["target"] else NONE, "", "quiet")
    verdict = VERDICTS[found["verdict"], found["about"]]
    tone = "quiet" if found["verdict"] == "n.s." else "good" if found["delta"] > 0 else "bad"
    ends = interval(found["low"], found["high"], sign=True)
    return TableCell(signed(found["delta"]), f"{ends} {verdict}, {p_value(found['p_adjusted'])}", tone)


def _retain(row: Mapping[str, Any]) -> tuple[TableCell, TableCell]:
    found = row["retain"]
    if found is None:
        return TableCell(NONE), TableCell(NONE)
    if row["kind"] == "base":
        return TableCell(NONE, f"{percent(found['mean'])} right"), TableCell(NONE)
    return TableCell(percent(found["kept"])), TableCell(signed(found["net_change"]))
