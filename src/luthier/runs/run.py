"""A run in its folder, and the content of its run.json."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from luthier.engine.distributed import World
from luthier.recipe import Recipe, load_recipe
from luthier.recipe.fingerprint import fingerprint
from luthier.recipe.lock import versions
from luthier.run_folder import read_json

SETS = ("target", "retain", "validation")


@dataclass
class Run:
    """One training in its folder.

    Attributes:
        method: the method's label in a comparison.
        sets: what is evaluated after training.
        cache: folder of files that several runs of a comparison share; None: `shared/` in the run's own folder.
        seconds: by phase, what this run spent.
        reused: by phase, what other runs spent on files that this run read.
        phase: begins a phase (name, total); returns the callback (done, total) that reports its progress.
    """

    recipe: Recipe
    folder: Path
    method: str = "run"
    sets: Sequence[str] = SETS
    cache: Path | None = None
    console: Console | None = None
    world: World = field(default_factory=World)
    seconds: dict[str, float] = field(default_factory=dict)
    reused: dict[str, float] = field(default_factory=dict)
    phase: Callable[[str, int], Callable[[int, int], None]] = lambda name, total: lambda done, total: None

    def record(self, status: str, error: str | None = None, **more: Any) -> dict[str, Any]:
        """The content of run.json.

        Args:
            status: "done", "stopped" or "failed".
            more: further keys, such as the training's numbers and the evaluation.
        """
        return {
            "status": status,
            "error": error,
            "method": self.method,
            "seed": self.recipe.settings.seed,
            "settings": self.recipe.data,
            "fingerprint": fingerprint(self.recipe),
            "seconds": self.seconds,
            "reused_seconds": self.reused,
            "versions": versions(),
            "hardware": hardware(),
            **more,
        }

    @property
    def shared(self) -> Path:
        """Folder of what is computed or requested once for all runs of a comparison."""
        return self.cache or self.folder / "shared"

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to `seconds[name]`; not if the block raises: a resumed run does it again."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def recipe_of_task(task: Mapping[str, Any]) -> Recipe:
    """The recipe of a run of a comparison, at the run's own seed.

    Args:
        task: the content of task.json.
    """
    return load_recipe(task["recipe"], overrides=[f"seed={task['seed']}"])


def recipe_of_run(folder: Path) -> Recipe | None:
    """The recipe that a run was started with; None for a folder that is no run.

    `luthier run` keeps the recipe in lock.json. A run of a comparison keeps it in task.json.
    """
    if (folder / "lock.json").is_file():
        return load_recipe(folder / "lock.json")
    if (folder / "task.json").is_file():
        return recipe_of_task(read_json(folder / "task.json"))
    return None


def hardware() -> dict[str, Any]:
    """CPU, threads, GPU and system of this machine."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu, "system": platform.system()}
