"""The table of a comparison as text cells, which every format lays out in its own way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.report.numbers import NONE, count, gigabytes, interval, minutes, p_value, percent, points, rate, signed
from luthier.report.sentences import Results, other_tokens, speed_title

OTHER_TOKENS_COLUMN = 6
"""The column of tokens outside training follows the speed, where any method has such tokens."""

VERDICTS = {
    ("differs", "methods"): "differs",
    ("differs", "models"): "models differ",
    ("n.s.", "methods"): "n.s.",
    ("n.s.", "models"): "n.s.",
}


@dataclass(frozen=True)
class TableCell:
    """A number or name and, in smaller print, its interval or verdict. `tone` is good, bad, quiet or empty."""

    text: str
    detail: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Titles and rows of cells; the first column is text, all others are numbers."""

    titles: tuple[str, ...]
    rows: tuple[tuple[TableCell, ...], ...]


def build_table(results: Results, narrow: bool = False) -> Table:
    """The table of a results.json, its rows in the order of the plan: the untrained model first, then the methods.

    Args:
        results: content of results.json.
        narrow: leave the column of tokens outside training to the notes.
    """
    titles = ["method", "target", f"change vs {results['baseline']}", "retain", "net"]
    titles += [speed_title(results), "peak GB", "min", "lr"]
    rows = [_row(row, results) for row in results["rows"]]
    other = [other_tokens(row) for row in results["rows"]]
    if any(other) and not narrow:
        titles.insert(OTHER_TOKENS_COLUMN, "other tok")
        for cells, tokens in zip(rows, other, strict=True):
            cells.insert(OTHER_TOKENS_COLUMN, TableCell(count(tokens or None)))
    return Table(tuple(titles), tuple(tuple(cells) for cells in rows))


def _row(row: Mapping[str, Any], results: Results) -> list[TableCell]:
    cost = row["cost"] or {}
    return [
        TableCell(row["label"], _missing(row, results), "bad" if row["failed"] else ""),
        _target(row),
        _change(row),
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


def _target(row: Mapping[str, Any]) -> TableCell:
    target = row["target"]
    if target is None:
        return TableCell(NONE)
    return TableCell(points(target["mean"]), interval(target["low"], target["high"]))


def _change(row: Mapping[str, Any]) -> TableCell:
    change = row["change"]
    if change is None:
        return TableCell(NONE)
    if change["verdict"] == "baseline":
        return TableCell("baseline" if row["target"] else NONE, "", "quiet")
    verdict = VERDICTS[change["verdict"], change["about"]]
    tone = "quiet" if change["verdict"] == "n.s." else "good" if change["delta"] > 0 else "bad"
    ends = interval(change["low"], change["high"], sign=True)
    return TableCell(signed(change["delta"]), f"{ends} {verdict}, {p_value(change['p_adjusted'])}", tone)


def _retain(row: Mapping[str, Any]) -> tuple[TableCell, TableCell]:
    retain = row["retain"]
    if retain is None:
        return TableCell(NONE), TableCell(NONE)
    if row["kind"] == "base":
        return TableCell(NONE, f"{percent(retain['mean'])} right"), TableCell(NONE)
    return TableCell(percent(retain["kept"])), TableCell(signed(retain["net_change"]))
