"""The data doctor: examines a `data:` block without stopping at the first bad line, and prints a report."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.data.pairs import SIDES
from luthier.data.prepare import DataSettings, prepare_with_report
from luthier.data.render import Renderer
from luthier.data.report import Complaint, DataReport, about_problems, counted, grouped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

MOST_COMPLAINTS = 10
MOST_ORIGINS = 2  # lines named per complaint
MOST_TOKENS = 600  # tokens of a preview
LEAKS = ("exact", "near", "related", "answers")


def examine(
    settings: DataSettings, renderer: Renderer, base: Path, cache: Path | None = None, columns: Sequence[str] = ()
) -> DataReport:
    """Read, split and render all data; `problems` lists every record that cannot be used.

    The first warning says why training is impossible, if it is: no record is left, or everything is masked.

    Raises:
        ModelError: the tokenizer cannot render any record.
        RecipeError: a setting that is not understood.
    """
    return prepare_with_report(settings, renderer, base, cache, columns, collect=True).report


def print_report(report: DataReport, console: Console) -> None:
    """Print a report: a table, the problems one by one, the preview of the mask and the warnings."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for name, text in _lines(report):
        table.add_row(name, text)
    console.print(table)
    columns = {guess.hint for _, guess in report.guesses}  # `check` shows them below, with an example
    for kind, problems in report.problems.items():
        console.print(f"\n[red]{counted(kind, len(problems))}[/red]", highlight=False)
        _print_complaints(grouped(problems), console, columns)
    if report.previews:
        console.print("\n[bold]The first training record as the model reads it[/bold]")
    numbered = [f"answer {number}" for number in range(1, len(report.previews) + 1)]
    sides = SIDES if len(report.previews) == 2 else numbered
    for side, preview in zip(sides, report.previews, strict=True):
        if len(report.previews) > 1:
            console.print(f"{side}:", style="bold")
        print_preview(preview, console)
    listed = set(about_problems(report))  # they stand above, one by one
    # Without a record that can be read, nothing is left for the reason that stands above.
    follows = bool(report.problems) and not report.read
    for warning in report.warnings[1 if follows and report.fault[0] else 0 :]:
        if warning in listed:
            continue
        console.print()
        print_warning(warning, console)


def print_warning(text: str, console: Console) -> None:
    """Print a warning behind its name."""
    from rich.text import Text

    console.print(Text.assemble(("warning", "yellow"), " ", text), highlight=False)


def _print_complaints(complaints: Sequence[Complaint], console: Console, unneeded: Collection[str]) -> None:
    """Each complaint once, with the number of lines that have it, the first of them, and what to do about it.

    Args:
        unneeded: hints that are printed elsewhere.
    """
    for complaint in complaints[:MOST_COMPLAINTS]:
        count, origins = len(complaint.origins), ", ".join(complaint.origins[:MOST_ORIGINS])
        more = f" and {count - MOST_ORIGINS:,} more" if count > MOST_ORIGINS else ""
        text = f"{origins}{more}: {complaint.message}" if origins else complaint.message
        console.print(f"  {f'{count:,} × ' if count > 1 else ''}{text}", markup=False, highlight=False)
        if complaint.hint and complaint.hint not in unneeded:
            console.print(f"    {complaint.hint}", markup=False, highlight=False)
    if rest := sum(len(complaint.origins) for complaint in complaints[MOST_COMPLAINTS:]):
        console.print(f"  ... and {rest:,} more")


def print_preview(preview: Sequence[tuple[str, bool]], console: Console) -> None:
    """Print a row token by token, with targets in green, or between ⟦ and ⟧ if the console has no colour."""
    console.print(_preview(preview, coloured=console.color_system is not None))
    console.print("[green]green[/green]: learned" if console.color_system else "⟦ ⟧: learned", style="dim")


def _preview(preview: Sequence[tuple[str, bool]], coloured: bool) -> Text:
    from rich.text import Text

    text = Text()
    inside = False
    for count, (token, target) in enumerate(_shortened(preview)):
        if not coloured and target != inside:
            text.append("⟦" if target else "⟧")
        inside = target
        visible = token.replace("\n", "⏎\n").replace("\t", "⇥")
        # Neighbouring tokens differ in brightness, so that their borders show.
        style = f"green{' bold' if count % 2 else ''}" if target else ("" if count % 2 else "dim")
        text.append(visible, style=style)
    if inside and not coloured:
        text.append("⟧")
    return text


def _shortened(preview: Sequence[tuple[str, bool]]) -> list[tuple[str, bool]]:
    if len(preview) <= MOST_TOKENS:
        return list(preview)
    half = MOST_TOKENS // 2
    return [*preview[:half], (f"\n[... {len(preview) - 2 * half} tokens ...]\n", False), *preview[-half:]]


def _lines(report: DataReport) -> list[tuple[str, str]]:
    shapes = ", ".join(f"{count:,} {shape.replace('_', '/')}" for shape, count in report.shapes.items())
    lines = [
        ("read", f"{report.read:,} records" + (f" ({shapes})" if shapes else "")),
        ("records", ", ".join(f"{name} {count:,}" for name, count in report.counts.items()) or "none"),
        ("duplicates", f"{report.duplicates:,} exact, {report.near_duplicates:,} near or related"),
    ]
    if report.lengths:
        lines.append(("tokens per row", "median {p50:,}, 95% {p95:,}, longest {max:,}".format(**report.lengths)))
    if report.counts:
        lost = sum(report.dropped.values()) + report.no_target
        cut = sum(report.truncated.values())
        lines.append((f"over {report.max_tokens:,} tokens", f"{lost:,} dropped, {cut:,} truncated"))
        share = f"{report.target_tokens:,} of {report.tokens:,} training tokens ({report.target_share:.0%})"
        lines.append(("targets", share))
    if report.unread:
        lines.append(
            ("not read", ", ".join(f"{name} ({unread['records']:,})" for name, unread in report.unread.items()))
        )
    for name, leak in report.leakage.items():
        kinds = [kind for kind in LEAKS if kind in ("exact", "near") or leak.get(kind)]
        lines.append((f"{name} in train", ", ".join(f"{leak[kind]:,} {kind}" for kind in kinds)))
    return lines
