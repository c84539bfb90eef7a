"""Read the folder of a run that has finished, failed or not begun."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.compare.plan import Task
from luthier.evals.base import Item
from luthier.run_folder import read_json, read_jsonl

LOG_LINES = 12
LOG_BYTES = 16_384


@dataclass(frozen=True)
class RunOutcome:
    """A task with the content of its folder.

    `status` is done, failed, stopped or missing; `record` is run.json; `items` are keyed by set; `metrics` are the
    updates of metrics.jsonl; `log` holds the last lines of a run that is not done.
    """

    task: Task
    status: str
    record: Mapping[str, Any] = field(default_factory=dict)
    items: Mapping[str, list[Item]] = field(default_factory=dict)
    metrics: list[Mapping[str, Any]] = field(default_factory=list)
    log: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return self.status == "done"

    @property
    def error(self) -> str | None:
        return self.record.get("error")

    def mean(self, name: str) -> float | None:
        """The mean score on a set, in [0, 1]; None when the set was not evaluated."""
        return (self.record.get("evaluation", {}).get(name) or {}).get("mean")


def read_run(folder: Path, task: Task) -> RunOutcome:
    """Read a run's folder; only a run that is done has items and metrics."""
    status, record = status_of(folder, task)
    if status != "done":
        return RunOutcome(task, status, record, log=tail_of_log(folder))
    items: dict[str, list[Item]] = {}
    for line in read_jsonl(folder / "evaluation.jsonl"):
        items.setdefault(line["set"], []).append(Item.from_json(line))
    if "target" in task.sets and "target" not in items:
        error = "No held-out item was scored; `data.test` must leave some."
        return RunOutcome(task, "failed", {**record, "error": error}, log=tail_of_log(folder))
    metrics = [line for line in read_jsonl(folder / "metrics.jsonl") if "loss" in line]
    return RunOutcome(task, status, record, items, metrics)


def status_of(folder: Path, task: Task) -> tuple[str, dict[str, Any]]:
    """The status of a task and its run.json, by its folder.

    The folder may hold the run of an older recipe: with another fingerprint the task counts as missing.
    """
    if not (folder / "task.json").is_file() or not (folder / "run.json").is_file():
        return "missing", {}
    if read_json(folder / "task.json").get("fingerprint") != task.fingerprint:
        return "missing", {}
    record = read_json(folder / "run.json")
    return record["status"], record


def tail_of_log(folder: Path, lines: int = LOG_LINES) -> tuple[str, ...]:
    """The last lines of a run's log, without empty ones."""
    path = folder / "log.txt"
    if not path.is_file():
        return ()
    with path.open("rb") as handle:
        # A crash loop can fill a log; its end is all that is shown.
        handle.seek(max(0, handle.seek(0, 2) - LOG_BYTES))
        text = handle.read().decode("utf-8", "replace")
    return tuple(line.rstrip() for line in text.splitlines() if line.strip())[-lines:]
