"""Carries out the steps of a recipe, one after the other.

A pipeline is resumed by running it again. A step that had ended reads back its last checkpoint or its records, so the
steps after it start from the same model and the same records, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luthier.engine.assemble import build_tuners
from luthier.errors import RecipeError, RunError
from luthier.modalities.language.answers import gold
from luthier.recipe import Stage, flat
from luthier.recipe.steps import BASE, DATA, NEWEST, names_in
from luthier.steps.model import StepModel
from luthier.steps.verbs.base import Status
from luthier.steps.work import Work


def run_pipeline(work: Work, stages: Sequence[Stage]) -> Status:
    """Carry out all steps in order.

    Returns:
        "stopped" if the run was asked to end, else "done".

    Raises:
        RecipeError: a step changes a model whose tuning cannot be merged.
    """
    _refuse_unmergeable(work, stages)
    loaded = work.workspace.loaded
    # `folded`: an adapter was merged at loading, so an adapter of the next training alone is not the whole change.
    base = StepModel(loaded.module, None, loaded.weights_id, trainings=int(loaded.folded))
    work.models = {BASE: base, NEWEST: base}
    if work.run.recipe.settings.steps is None:
        return stages[0].verb.run(work, stages[0], work.run.folder)
    work.records[DATA] = gold(work.language)
    return run_steps(work, stages, work.run.folder / "steps", ())


def run_steps(work: Work, stages: Sequence[Stage], folder: Path, after: Sequence[Stage]) -> Status:
    """Carry out steps, each in a folder of its name.

    Args:
        after: the steps that follow these ones; the models that they start from must not be changed.
    """
    for index, stage in enumerate(stages):
        work.ahead = [*stages[index + 1 :], *after]
        if _run_step(work, stage, folder / stage.name) == "stopped":
            return "stopped"
    return "done"


def _run_step(work: Work, stage: Stage, folder: Path) -> Status:
    if stage.verb.TRAINS or stage.body:  # a training ends between two updates and counts its own seconds
        status = stage.verb.run(work, stage, folder) or "done"
    else:
        with work.stop.at_once(), work.run.timed(stage.verb.kind):
            folder.mkdir(parents=True, exist_ok=True)
            status = stage.verb.run(work, stage, folder) or "done"
    if status == "done":
        _refuse_missing(work, stage)
    return status


def _refuse_missing(work: Work, stage: Stage) -> None:
    """Raise RunError for a model or records that a step should leave and did not; later steps would not find them."""
    kept = {"model": work.models, "records": work.records}
    for kind in stage.verb.leaves:
        if stage.name not in kept[kind]:
            call = "work.leave_module(stage, module)" if kind == "model" else "work.records[stage.name] = candidates"
            raise RunError(
                f"Step `{stage.name}` left no {kind}, though LEAVES of the verb `{stage.verb.kind}` names `{kind}`.",
                f"Write `{call}` in its `run`, or take `{kind}` out of LEAVES.",
            )


def _refuse_unmergeable(work: Work, stages: Sequence[Stage]) -> None:
    changing = [stage for stage in flat(stages) if "model" in stage.verb.leaves and not stage.body]
    loaded = work.workspace.loaded
    if changing and loaded.tuner is not None:
        raise RecipeError(
            f"{loaded.name} was trained with `{loaded.tuner}`, which cannot be merged, so the model cannot be trained"
            " further.",
            "Start from its base model.",
        )
    for index, stage in enumerate(changing):
        if not stage.verb.TRAINS:
            continue
        unmergeable = [tuner.kind for tuner in build_tuners(stage.recipe) if not tuner.MERGES]
        later = [step for step in changing[index + 1 :] if _starts_from(step, (NEWEST, stage.name))]
        if unmergeable and later:
            does = "trains" if later[0].verb.TRAINS else "changes"
            raise RecipeError(
                f"Step `{later[0].name}` {does} the model of step `{stage.name}`, and `{unmergeable[0]}` cannot be"
                " merged.",
                f"Train with `{unmergeable[0]}` in the last step.",
            )


def _starts_from(stage: Stage, names: Sequence[str]) -> bool:
    return any(target in names for _, target in names_in(stage.verb, "model"))
