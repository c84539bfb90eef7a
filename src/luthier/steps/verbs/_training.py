"""The training of one step, for the verbs `train` and `rl`: its start, its rows, and the model that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.engine.probe import LossCurves
from luthier.engine.trainer import Trainer
from luthier.errors import RunError
from luthier.modalities.base import Workspace
from luthier.modalities.language.columns import forget_states
from luthier.modalities.open import open_workspace
from luthier.recipe import Stage, flat
from luthier.recipe.steps import DATA, NEWEST, names_in
from luthier.run_folder import read_jsonl
from luthier.steps.model import StepModel, derived_id
from luthier.steps.train import carry_probe, trained_facts, training
from luthier.steps.verbs.base import Status
from luthier.steps.work import Work

Probe = Mapping[str, Any] | None


def train(work: Work, stage: Stage, folder: Path, probe: Probe = None) -> Status:
    """Train the model that the step's `from` names, on the records of its `data`.

    In a loop whose rounds are one training, model and optimiser continue from the previous round.

    Raises:
        RunError: the step has no records.
    """
    carried = work.carried.get(stage.name) if work.span is not None else None
    with work.stop.at_once():
        source = work.models[stage.verb.from_]
        workspace = _workspace(work, stage, source, carried)
        trainer, facts = _start(work, stage, folder, workspace, probe, carried)
        if _is_merged_later(work, stage, source, trainer):
            for tuner in trainer.tuners:
                tuner.refuse_merge(trainer.policy.module)
    status = _carry_out(work, folder, trainer)
    if status == "done" and source.weights_id != work.workspace.loaded.weights_id:
        # Other runs of the comparison cannot reuse hidden states of a model that only this run has trained.
        forget_states(trainer.policy)
    weights_id = source.weights_id
    if work.label(folder):  # hashing all weights takes time, and without steps nothing reads the id
        weights_id = derived_id(weights_id, stage, trainer.masters.of_model())
    # Rounds that are one training change the weights once.
    model = StepModel(trainer.policy.module, trainer, weights_id, source.trainings + (not carried))
    work.leave_model(stage, model)
    work.carried[stage.name] = trainer
    _leave_columns(work, trainer)
    work.note(stage, folder, facts | _facts(work, folder, trainer))
    return status


def train_proxy(work: Work, stage: Stage, folder: Path, probe: Probe = None) -> Status:
    """Train the `model` of the step itself, and leave only the columns of its probe."""
    with work.stop.at_once():
        workspace = open_workspace(stage.recipe, work.run.cache)
        trainer, facts = _start(work, stage, folder, workspace, probe, None)
    status = _carry_out(work, folder, trainer)
    _leave_columns(work, trainer)
    own = {"model": stage.recipe.settings.model.path}
    work.note(stage, folder, own | facts | _facts(work, folder, trainer))
    return status


def _is_merged_later(work: Work, stage: Stage, source: StepModel, trainer: Trainer) -> bool:
    """Whether the tuning is merged into the weights: one adapter is not all of the change, or a step builds on it."""
    if len(trainer.tuners) > 1 or (source.trainings and all(tuner.MERGES for tuner in trainer.tuners)):
        return True
    later = [step for step in flat(work.ahead) if "model" in step.verb.leaves]
    return any(name in (NEWEST, stage.name) for step in later for _, name in names_in(step.verb, "model"))


def _start(
    work: Work, stage: Stage, folder: Path, workspace: Workspace, probe: Probe, carried: Trainer | None
) -> tuple[Trainer, dict[str, Any]]:
    """The step's trainer at its newest checkpoint; lines that an earlier try wrote after it are dropped."""
    run = replace(work.run, recipe=stage.recipe, folder=folder)
    observe, span = work.observer(folder), work.span or (0.0, 1.0)
    trainer, facts = training(run, workspace, observe, work.stop.requested, carried, span)
    if probe:
        carry_probe(trainer, probe["every"])
    trainer.resume()
    if trainer.checkpoints.damaged:
        facts["damaged_checkpoints"] = [path.name for path in trainer.checkpoints.damaged]
    work.journal.forget_after(trainer.position.updates, work.label(folder))
    return trainer, facts


def _carry_out(work: Work, folder: Path, trainer: Trainer) -> Status:
    work.journal.phase(f"train {work.label(folder)}".strip())
    with work.run.timed("train"):
        return trainer.train()


def _workspace(work: Work, stage: Stage, source: StepModel, carried: Trainer | None) -> Workspace:
    """The recipe's workspace with the step's model and rows."""
    loaded, prepared = work.workspace.loaded, work.workspace.prepared
    if carried is None:
        loaded = replace(loaded, module=work.free_module(stage.verb.from_), weights_id=source.weights_id)
    if stage.verb.data != DATA:
        chosen = work.inputs(stage)
        if not chosen:
            raise RunError(
                f"Step `{stage.name}` has nothing to train on: `{stage.verb.data}` has no record.",
                "Sample more answers, start from a better model, or keep gold answers too.",
            )
        records = prepared.records | {candidate.row.id: candidate.record for candidate in chosen}
        prepared = replace(prepared, train=[candidate.row for candidate in chosen], records=records)
    return replace(work.workspace, recipe=stage.recipe, loaded=loaded, prepared=prepared)


def _leave_columns(work: Work, trainer: Trainer) -> None:
    for probe in trainer.probes:
        if isinstance(probe, LossCurves):
            work.columns["trajectory"] = probe.column()


def _facts(work: Work, folder: Path, trainer: Trainer) -> dict[str, Any]:
    label = work.label(folder)
    lines = [line for line in read_jsonl(work.journal.folder / "metrics.jsonl") if "loss" in line]
    return trained_facts(trainer, [line for line in lines if line.get("step", "") == label])
