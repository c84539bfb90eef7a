"""The table on a terminal, with what it may say."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from luthier.report.table import Cell, build_table
from luthier.report.words import Results, findings, headline, notes

STYLES = {"good": "green", "bad": "red", "quiet": "dim", "": ""}
WIDE = 124  # columns from which an interval stands beside its number


def print_report(results: Results, console: Console) -> None:
    """Print headline, table, findings, notes, warnings and failures."""
    table = build_table(results)
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for index, title in enumerate(table.titles):
        shown.add_column(title, justify="left" if index == 0 else "right", overflow="fold")
    between = " " if console.width >= WIDE else "\n"
    for row in table.rows:
        shown.add_row(*(_text(cell, between) for cell in row))
    console.print()
    console.print(shown)
    for line in (headline(results), *findings(results)):
        console.print(Text(line))
    console.print()
    for line in notes(results):
        console.print(Text(line, style="dim"))
    for line in results["warnings"]:
        console.print(Text(f"warning: {line}", style="yellow"))
    for failure in results["failures"]:
        said = failure["error"] or "did not run"
        console.print(Text(f"{failure['status']}: {failure['folder']}: {said}", style="red"))


def _text(cell: Cell, between: str) -> Text:
    text = Text(cell.text, style=STYLES[cell.tone])
    return text.append(f"{between}{cell.detail}", style="dim") if cell.detail else text
