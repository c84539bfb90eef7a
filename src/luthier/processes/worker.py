"""`python -m luthier.processes.worker FOLDER`: the process of one run of a comparison, described by task.json.

Under torchrun every rank is such a process; rank 0 writes the results.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from luthier.engine.assemble import Parts
from luthier.engine.distributed import World
from luthier.errors import LuthierError, RecipeError
from luthier.modalities.base import Workspace
from luthier.modalities.open import open_workspace
from luthier.recipe import Recipe, load_recipe, stages_of
from luthier.run_folder import RunFolder, read_json, write_json
from luthier.runs.journal import Journal
from luthier.runs.run import Run, recipe_of_task
from luthier.steps.evaluate import evaluate_sets
from luthier.steps.run import carry_out
from luthier.steps.verify import verify


def work(folder: Path) -> dict[str, Any]:
    """Do the task of a folder; returns its run.json.

    Raises:
        LuthierError: the task failed; run.json holds the message.
    """
    task = read_json(folder / "task.json")
    run = Run(recipe_of_task(task), folder, task["method"], task["sets"], Path(task["shared"]), world=World.join())
    # A worker may outlive a comparison that was killed, so it locks its folder. Of several ranks, the command has
    # locked it.
    with RunFolder(folder).lock() if run.world.size == 1 else nullcontext():
        return carry_out(run) if task["do"] == "train" else _evaluate(run, task["methods"])


def _evaluate(run: Run, methods: Mapping[str, Any]) -> dict[str, Any]:
    try:
        record = run.record("done", evaluation=_evaluation(run, methods))
    except LuthierError as error:
        write_json(run.folder / "run.json", run.record("failed", str(error)))
        raise
    write_json(run.folder / "run.json", record)
    return record


def _evaluation(run: Run, methods: Mapping[str, Any]) -> dict[str, Any]:
    with Journal(run.folder) as journal:
        with run.timed("load"):
            journal.phase("load")
            workspace = open_workspace(run.recipe, run.cache)
            for label, lock in methods.items():
                _refuse_unfit(label, load_recipe(lock), workspace)
            journal.progress(1, 1)
        with run.timed("evaluate"):
            return evaluate_sets(workspace, workspace.loaded.module, run.sets, run.folder, journal)


def _refuse_unfit(label: str, recipe: Recipe, workspace: Workspace) -> None:
    """Raise RecipeError before the first training for a method that would be refused before its own."""
    try:
        verify(stages_of(recipe))
        if not recipe.settings.steps:
            workspace.refuse_unfit(Parts.of(recipe))
    except LuthierError as error:
        raise RecipeError(f"Method `{label}` cannot be trained here: {error.message}", error.hint) from error.__cause__


def main() -> int:
    """Do the task of the folder on the command line.

    Returns:
        The exit code: 0 for done, 143 for stopped with its state saved, other codes for failed.
    """
    folder = Path(sys.argv[1])
    try:
        record = work(folder)
    except LuthierError as error:
        if error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        write_json(folder / "run.json", {"status": "failed", "error": f"{type(error).__name__}: {error}"})
        return 1
    return 143 if record["status"] == "stopped" else 0


if __name__ == "__main__":
    sys.exit(main())
