"""A comparison from its plan to its reports: the same model, data and budget through several methods."""

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
from luthier.compare.runs import RunOutcome, read_run
from luthier.console import Terminal
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
    """Run a comparison, print its table and write its reports; a comparison that stopped goes on in its folder.

    Args:
        recipe: a loaded recipe, a file, a bundled name or a dictionary.
        methods: names of methods, composed with `+`, or part files; default: those of the recipe.
        seeds: a count or a list; default: those of the recipe.
        folder: where to write or go on; default: the next number under `out/name`.
        console: where progress and table go; default: the terminal.
        baseline: the method that others are compared with, `first` or `base`.
        overrides: `path=value`.
        command: starts a worker in place of Luthier's own; it gets a run's folder as its last argument.

    Returns:
        report.html; its folder also holds results.json, the other reports and the runs.

    Raises:
        RecipeError: a run's recipe is wrong; nothing has started.
        Stopped: the user stopped the comparison; the hint says how to go on.
        RunError: the base model cannot be evaluated, or no run succeeded.
    """
    comparison = plan(recipe, methods=methods, seeds=seeds, baseline=baseline, overrides=overrides)
    console = console or Terminal()
    run_folder = _run_folder(comparison, folder)
    with run_folder.lock():  # a second comparison in this folder would rename the runs of the first
        path = run_folder.path
        write_json(path / "plan.json", comparison.to_json())
        write_json(path / "lock.json", _lock(comparison))
        try:
            results = _compute(comparison, path, console, command)
        except Stopped as stopped:
            raise Stopped(stopped.message, f"To go on, give the same command with `--resume {path}`.") from None
        write_json(path / "results.json", results)
        if not any(row["target"] for row in results["rows"] if row["kind"] == "method"):
            first = results["failures"][0]
            raise RunError(
                f"No run succeeded. {first['folder']}: {first['error']}",
                f"Its log: {path / first['folder']}/log.txt",
            )
        for name in FORMATS:
            write_report(path, name)
    print_report(results, console)
    return path / "report.html"


def _run_folder(comparison: Plan, folder: RunFolder | Path | None) -> RunFolder:
    """The comparison's folder: a new one, or one in which this comparison was begun."""
    if folder is None:
        return RunFolder.create(Path(comparison.settings["out"]), comparison.name)
    path = folder.path if isinstance(folder, RunFolder) else folder
    if path.is_dir() and any(path.iterdir()) and not (path / "plan.json").is_file():
        raise RunError(f"{path} holds something else than a comparison.", "Give a new folder, or none.")
    path.mkdir(parents=True, exist_ok=True)
    # Methods and seeds may change between tries; the evaluation of the base model says that the question is the same.
    known = {read_json(task)["fingerprint"] for task in path.glob("shared/base*/task.json")}
    if known and not known & {task.fingerprint for task in comparison.bases}:
        raise RunError(
            f"{path} holds another comparison: its model, its data or how it evaluates are not those of this recipe.",
            "Give the folder that this recipe was started in, or start a new comparison without `--resume`.",
        )
    return RunFolder(path)


def _lock(comparison: Plan) -> dict[str, Any]:
    """The recipe with the methods and seeds that were really compared, so that the lock repeats the comparison."""
    arms = comparison.arms
    compared = {
        "compare.methods": [arm.patch for arm in arms if arm.axes == arms[0].axes],
        "compare.seeds": list(comparison.seeds),
        "compare.baseline": comparison.baseline,
    }
    overrides = [f"{path}={json.dumps(value)}" for path, value in compared.items()]
    return comparison.recipes.load((), overrides).to_lock({"data_files": dict(comparison.data_files)})


def _compute(comparison: Plan, folder: Path, console: Console, command: Sequence[str] | None) -> dict[str, Any]:
    """All runs in three rounds, since each needs the one before: base model, tuning, the runs of the table."""
    total = len(comparison.bases) + len(comparison.tuning) + len(comparison.arms) * len(comparison.seeds)
    with Workers(command) as workers, ConsoleWatcher(console, total) as watcher:
        codes = execute(comparison.bases, folder, watcher, workers)
        bases = [read_run(folder / task.folder, task) for task in comparison.bases]
        _stop_on_user_error(bases, codes, folder)
        execute([task for _, _, task in comparison.tuning], folder, watcher, workers)
        tuning = [(arm, index, read_run(folder / task.folder, task)) for arm, index, task in comparison.tuning]
        chosen = choose(comparison, tuning)
        tasks = comparison.runs(chosen)
        execute(tasks, folder, watcher, workers)
    shutil.rmtree(folder / "shared" / "states", ignore_errors=True)  # large, and needed by trainings alone
    runs = [read_run(folder / task.folder, task) for task in tasks]
    return assemble(comparison, bases, tuning, runs, chosen)


def choose(comparison: Plan, tuning: Sequence[tuple[str, int, RunOutcome]]) -> dict[str, int]:
    """The candidate with the best mean on validation for each arm; of equal ones the earlier.

    An arm of which no tuning run succeeded is left out.
    """
    if not comparison.candidates:
        return {}
    if not tuning:  # one candidate: nothing to choose from, so no tuning run was planned
        return {arm.folder: 0 for arm in comparison.arms}
    scores: dict[str, dict[int, list[float]]] = {}
    for arm, index, run in tuning:
        score = run.mean("validation")
        if run.done and score is not None:
            scores.setdefault(arm, {}).setdefault(index, []).append(score)
    best = {}
    for arm, by_candidate in scores.items():
        means = {index: fmean(of_seeds) for index, of_seeds in by_candidate.items()}
        best[arm] = max(sorted(means), key=means.__getitem__)  # `max` keeps the first of equal ones
    return best


def _stop_on_user_error(bases: Sequence[RunOutcome], codes: Mapping[str, int], folder: Path) -> None:
    """Exit code 2 means a mistake in recipe, data or model, which every run would meet again."""
    for run in bases:
        if codes.get(run.task.folder) == 2:
            raise RunError(f"The comparison cannot begin: {run.error}", f"The log: {folder / run.task.folder}/log.txt")
