"""The files that a run writes while it works: metrics and progress; and a progress bar on the console."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from luthier.run_folder import append_jsonl, read_jsonl, write_text

EVERY_SECONDS = 0.5


class Journal:
    """Writes metrics.jsonl and progress.jsonl in a run's folder; with a console it also draws a progress bar."""

    def __init__(self, folder: Path, console: Console | None = None):
        self.folder = folder
        self.bar = None if console is None else Progress(
            TextColumn("{task.description:22}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console,
        )  # fmt: skip
        self.counts = "tokens"  # unit of the training's speed
        self._task: TaskID | None = None
        self._phase = ""
        self._started = self._written = 0.0

    def __enter__(self) -> Journal:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def phase(self, name: str, total: int = 1) -> Callable[[int, int], None]:
        """Begin a phase; returns the callback (done, total) that reports its progress."""
        self._phase, self._started, self._written = name, time.monotonic(), 0.0
        if self.bar is not None:
            self._task = self.bar.add_task(name, total=total, note="")
        self.progress(0, total)
        return self.progress

    def progress(self, done: int, total: int, seconds_left: float | None = None, note: str = "") -> None:
        """Record how far the phase is; lines are written at most every EVERY_SECONDS.

        Args:
            seconds_left: None estimates them from the phase's speed so far.
            note: shown beside the bar.
        """
        now = time.monotonic()
        if self.bar is not None and self._task is not None:
            self.bar.update(self._task, completed=done, total=total, note=note)
        if now - self._written < EVERY_SECONDS and done not in (0, total):  # a reader must see begin and end
            return
        self._written = now
        if seconds_left is None and done:
            seconds_left = (now - self._started) * (total - done) / done
        line = {"phase": self._phase, "done": done, "total": total, "seconds_left": seconds_left}
        append_jsonl(self.folder / "progress.jsonl", line)

    def event(self, event: dict[str, Any]) -> None:
        """Write an event as a line of metrics.jsonl; an update is progress too."""
        kind = event.pop("event")
        left = event.pop("updates_left", None)
        append_jsonl(self.folder / "metrics.jsonl", event if kind == "update" else {"event": kind, **event})
        if kind == "update":
            share = event["progress"]
            # A budget of seconds has no known number of updates: its progress is counted in thousandths.
            total = 1000 if left is None else event["update"] + left
            done = round(1000 * share) if left is None else event["update"]
            seconds = event["seconds"] * (1 - share) / share if share else None
            self.progress(
                done, total, seconds, f"loss {event['loss']:.3f} · {event['tokens_per_second']:,.0f} {self.counts}/s"
            )

    def forget_after(self, update: int, step: str = "") -> None:
        """Drop the lines that a step wrote after this update: a resumed run writes them again.

        A line without an update (`reward_failed`) belongs to the step's next update in the file.
        """
        path = self.folder / "metrics.jsonl"
        lines = read_jsonl(path)
        last = -1  # index of the step's newest line of this update or an earlier one
        for index, line in enumerate(lines):
            if line.get("step", "") == step and line.get("update", update + 1) <= update:
                last = index
        kept = [line for index, line in enumerate(lines) if index <= last or line.get("step", "") != step]
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
