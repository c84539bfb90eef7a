"""The main job: the same model, data and budget through several methods, then the table and the reports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from luthier.compare.execute import Stopped, execute
from luthier.compare.plan import Plan, plan
from luthier.compare.progress import ConsoleWatcher
from luthier.compare.results import assemble
from luthier.compare.runs import FinishedRun, read_run
from luthier.errors import RunError
from luthier.processes.launch import Workers
from luthier.recipe import Recipe
from luthier.report import print_report, write_report
from luthier.run_folder import RunFolder, read_json, write_json

FORMATS = ("html", "markdown", "csv", "latex")


def compare(
    recipe: Recipe | Path | str | dict[str, Any],
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    folder: RunFolder | Path | None = None,
    console: Console | None = None,
    *,
    baseline: str | None = None,
    overrides: Sequence[str] = (),
    command: Sequence[str] | None = None,
) -> Path:
    """Run a comparison, print its table and write its reports. With a folder of before it goes on there.

    Args:
        recipe: a loaded recipe, a file, a bundled name or a dictionary.
        methods: names of methods, composed with `+`, or part files; default: those of the recipe.
        seeds: a count or a list; default: those of the recipe.
        folder: where to write or go on; default: the next number under `out/name`.
        console: where progress and table go; default: the terminal.
        baseline: the method that others are compared with, `first` or `base`.
        overrides: `path=value`.
        command: a worker of one's own; it gets a run's folder as its last argument.

    Returns:
        report.html; beside it lie results.json, the other reports and the runs.

    Raises:
        RecipeError: something in any of the runs is wrong; nothing has started.
        Stopped: the user stopped it; the hint says how to go on.
        RunError: the base model cannot be evaluated, or no run succeeded.
    """
    planned = plan(recipe, methods=methods, seeds=seeds, baseline=baseline, overrides=overrides)
    console = console or Console()
    home = _home(planned, folder)
    with home.lock():
        write_json(home.path / "plan.json", planned.to_json())
        write_json(home.path / "lock.json", _lock(planned))
        try:
            results = _compute(planned, home.path, console, command)
        except Stopped as stopped:
            raise Stopped(stopped.message, f"To go on, give the same command with `--resume {home.path}`.") from None
        write_json(home.path / "results.json", results)
        if not any(row["target"] for row in results["rows"] if row["kind"] == "method"):
            first = results["failures"][0]
            raise RunError(
                f"No run succeeded. {first['folder']}: {first['error']}",
                f"Its log: {home.path / first['folder']}/log.txt",
            )
        for name in FORMATS:
            write_report(home.path, name)
    print_report(results, console)
    return home.path / "report.html"


def _home(planned: Plan, folder: RunFolder | Path | None) -> RunFolder:
    if folder is None:
        return RunFolder.create(Path(planned.settings["out"]), planned.name)
    path = folder.path if isinstance(folder, RunFolder) else folder
    if path.is_dir() and any(path.iterdir()) and not (path / "plan.json").is_file():
        raise RunError(f"{path} holds something else than a comparison.", "Give a new folder, or none.")
    path.mkdir(parents=True, exist_ok=True)
    known = {read_json(task)["fingerprint"] for task in path.glob("shared/base*/task.json")}
    if known and not known & {task.fingerprint for task in planned.bases}:
        raise RunError(
            f"{path} holds another comparison: its model, its data or how it evaluates are not those of this recipe.",
            "Give the folder that this recipe was started in, or start a new comparison without `--resume`.",
        )
    return RunFolder(path)


def _lock(planned: Plan) -> dict[str, Any]:
    """The recipe with the methods and seeds that were really compared, so that the lock repeats it."""
    wanted = {
        "compare.methods": [cell.patch for cell in planned.cells if cell.axes == planned.cells[0].axes],
        "compare.seeds": list(planned.seeds),
        "compare.baseline": planned.baseline,
    }
    overrides = [f"{path}={json.dumps(value)}" for path, value in wanted.items()]
    return planned.source.load((), overrides).to_lock({"data_files": dict(planned.data_files)})


def _compute(planned: Plan, folder: Path, console: Console, command: Sequence[str] | None) -> dict[str, Any]:
    total = len(planned.bases) + len(planned.tuning) + len(planned.cells) * len(planned.seeds)
    with Workers(command) as workers, ConsoleWatcher(console, total) as watcher:
        codes = execute(planned.bases, folder, watcher, workers)
        bases = [read_run(folder / task.folder, task) for task in planned.bases]
        _stop_on_user_error(bases, codes, folder)
        execute([task for _, _, task in planned.tuning], folder, watcher, workers)
        tuning = [(cell, index, read_run(folder / task.folder, task)) for cell, index, task in planned.tuning]
        chosen = choose(planned, tuning)
        tasks = planned.runs(chosen)
        execute(tasks, folder, watcher, workers)
    shutil.rmtree(folder / "shared" / "states", ignore_errors=True)  # large, and needed by trainings alone
    runs = [read_run(folder / task.folder, task) for task in tasks]
    return assemble(planned, bases, tuning, runs, chosen)


def choose(planned: Plan, tuning: Sequence[tuple[str, int, FinishedRun]]) -> dict[str, int]:
    """The candidate with the best mean on validation for each cell; the earlier one of equals.

    A cell of which no tuning run succeeded is left out.
    """
    if not planned.candidates:
        return {}
    if not tuning:
        return {cell.folder: 0 for cell in planned.cells}
    scores: dict[str, dict[int, list[float]]] = {}
    for cell, index, run in tuning:
        score = run.mean("validation")
        if run.done and score is not None:
            scores.setdefault(cell, {}).setdefault(index, []).append(score)
    return {cell: max(found, key=lambda index: (fmean(found[index]), -index)) for cell, found in scores.items()}


def _stop_on_user_error(bases: Sequence[FinishedRun], codes: Mapping[str, int], folder: Path) -> None:
    """Exit code 2 means a mistake in recipe, data or model, which every run would meet again."""
    for run in bases:
        if codes.get(run.task.folder) == 2:
            raise RunError(f"The comparison cannot begin: {run.error}", f"The log: {folder / run.task.folder}/log.txt")
