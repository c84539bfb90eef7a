"""Progress of a comparison on a terminal: the current run, the comparison, and how long both will take."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from luthier.compare.plan import Task
from luthier.report.numbers import duration


class ConsoleWatcher:
    """Two bars where the output is a terminal, and one line for each run that ends. Use as a context."""

    def __init__(self, console: Console, total: int):
        self.console = console
        self.total = total
        self.number = 0
        self.seconds: dict[str, list[float]] = {}
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
        )
        self.run = self.bars.add_task("", total=None, left="", visible=False)
        self.comparison = self.bars.add_task("whole comparison", total=total, left="")

    def __enter__(self) -> ConsoleWatcher:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def skip(self, task: Task) -> None:
        """Count a task that an earlier call has finished."""
        self.number += 1
        self.console.print(f"[dim]{self.number:>3}/{self.total}  {task.folder}: already done[/dim]")
        self.bars.update(self.comparison, completed=self.number)

    def begin(self, task: Task) -> None:
        """Show the bar of a run that starts."""
        self.number += 1
        self.bars.reset(self.run, total=None, description=self._name(task), left="starting", visible=True)

    def update(self, task: Task, line: Mapping[str, Any] | None, seconds: float) -> None:
        """Show the run's progress, and the seconds left of run and comparison.

        The run itself knows only how long its current phase will take; the mean of earlier runs covers the rest.
        """
        expected = self._expected(task)
        left = None if expected is None else max(0.0, expected - seconds)
        if line is not None:
            phase_left = line.get("seconds_left")
            left = phase_left if left is None else max(left, phase_left or 0.0)
            done, total = line["done"], line["total"]
            description = f"{self._name(task)} · {line['phase']} {done:,}/{total:,}"
            self.bars.update(self.run, completed=done, total=total or None, description=description)
        self.bars.update(self.run, left="" if left is None else f"{duration(left)} left")
        each = expected if expected is not None else None if left is None else seconds + left
        if left is not None and each is not None:
            total_left = left + (self.total - self.number) * each
            self.bars.update(self.comparison, completed=self.number - 1, left=f"about {duration(total_left)} left")

    def end(self, task: Task, status: str, seconds: float) -> None:
        """Print the line of a run that ended, with its status and time."""
        if status == "done":
            self.seconds.setdefault(task.do, []).append(seconds)
        style = {"done": "green", "failed": "red"}.get(status, "yellow")
        mark = {"done": "✓", "failed": "✗"}.get(status, "·")
        text = f"{self.number:>3}/{self.total}  [{style}]{mark}[/] {task.folder}: {status} in {duration(seconds)}"
        self.console.print(text, highlight=False)
        self.bars.update(self.comparison, completed=self.number)
        self.bars.update(self.run, visible=False)

    def stopping(self, task: Task) -> None:
        """Print why stopping takes a moment."""
        self.console.print(f"[yellow]stopping {task.folder}: it saves its state; Ctrl-C again ends it at once[/yellow]")

    def _name(self, task: Task) -> str:
        return f"run {self.number}/{self.total} {task.folder}"

    def _expected(self, task: Task) -> float | None:
        earlier = self.seconds.get(task.do)
        return fmean(earlier) if earlier else None
