"""A comparison on a terminal: its table, then the sentences that the table supports."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from luthier.report.sentences import Results, findings, headline, notes
from luthier.report.table import TableCell, build_table

STYLES = {"good": "green", "bad": "red", "quiet": "dim", "": ""}
ROOMY = 96  # characters from which the column of tokens outside training fits
WIDE = 124  # characters from which an interval fits behind its number


def print_report(results: Results, console: Console) -> None:
    """Print headline, table, findings, notes, warnings and failures."""
    table = build_table(results, narrow=console.width < ROOMY)
    wide = console.width >= WIDE
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1) if wide else (0, 1, 0, 0))
    columns = [index for index in range(len(table.titles)) if wide or not _same_for_all(table.rows, index)]
    for index in columns:
        justify, least = ("right", None) if index else ("left", 8)
        grid.add_column(table.titles[index], justify=justify, overflow="fold", no_wrap=index > 0, min_width=least)
    for row in table.rows:
        grid.add_row(*(_text(row[index], wide) for index in columns))
    console.print()
    console.print(grid)
    for line in (headline(results), *findings(results)):
        console.print(Text(line))
    console.print()
    for line in notes(results):
        console.print(Text(line, style="dim"))
    for line in results["warnings"]:
        console.print(Text(f"warning: {line}", style="yellow"))
    for failure in results["failures"]:
        reason = failure["error"] or "did not run"
        console.print(Text(f"{failure['status']}: {failure['folder']}: {reason}", style="red"))


def _same_for_all(rows: Sequence[Sequence[TableCell]], column: int) -> bool:
    """Whether all methods have the same number in a column; the notes below a narrow table name it once."""
    return len(rows) > 2 and len({row[column].text for row in rows[1:]}) == 1 and not rows[1][column].detail


def _text(cell: TableCell, wide: bool) -> Text:
    """The number, then interval and verdict: on the same line, or below line by line."""
    text = Text(cell.text, style=STYLES[cell.tone])
    detail = f" {cell.detail}" if wide else "\n" + cell.detail.replace("] ", "]\n").replace(", p", ",\np")
    return text.append(detail, style="dim") if cell.detail else text
