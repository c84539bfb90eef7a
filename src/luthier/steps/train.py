"""The trainer of one step: parts, tuned model and rows, put together for the engine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy
from torch import nn

from luthier.engine import usage
from luthier.engine.assemble import Parts, frozen_bytes
from luthier.engine.checkpoints import Saving
from luthier.engine.micro_batches import Batching
from luthier.engine.probe import LossCurves
from luthier.engine.router_loss import RouterLoss, find_router_loss
from luthier.engine.source import Records
from luthier.engine.trainer import Trainer
from luthier.engine.trains import what_trains
from luthier.errors import ModelError, RecipeError
from luthier.modalities.base import Workspace
from luthier.models.adapters import refuse_unmerged
from luthier.models.dropout import dropouts
from luthier.models.kinds import Weight, weights_of
from luthier.models.loading.saving import make_savable
from luthier.models.policy import TokenPolicy
from luthier.models.trial import RowTrial
from luthier.recipe.fingerprint import fingerprint
from luthier.recipe.modality import modality_of
from luthier.runs.run import Run
from luthier.tuners.base import Tuner
from luthier.types import Row

AUTO_READINGS = 10
"""How often a probe with `every: auto` reads the losses after the first reading."""
WHOLE_SCHEDULE = (0.0, 1.0)


def training(
    run: Run,
    workspace: Workspace,
    observe: Callable[[dict[str, Any]], None],
    stop_requested: Callable[[], bool],
    carried: Trainer | None = None,
    span: tuple[float, float] = WHOLE_SCHEDULE,
) -> tuple[Trainer, dict[str, Any]]:
    """The trainer of a recipe of one step, and the facts that are known before the training starts.

    Args:
        observe, stop_requested: gets the events of the training; whether to end after the update in progress.
        carried: the training that this one continues, with its model, its tuners and its optimiser's state.
        span: begin and end of this training in its schedule, within 0 and 1.

    Raises:
        LuthierError: the parts do not fit each other, the model or the data.
    """
    settings = run.recipe.settings
    parts = Parts.of(run.recipe)
    if carried is not None:
        parts = replace(parts, tuners=carried.tuners)  # they are already applied to the model
    parts.refuse_conflicts(modality_of(settings.model, run.recipe.base))

    notes = [] if carried is not None else made_ready(parts.tuners, workspace.loaded.module)
    weights = weights_of(workspace.loaded.module)
    # Columns such as the initial model's log-probabilities must be computed before the tuners change the model.
    rows = workspace.rows(run, parts)
    usage.reset_peak()
    policy = workspace.tune(run, parts, rows, alone=span == WHOLE_SCHEDULE) if carried is None else carried.policy
    compared = compared_with(parts, settings.rl is not None)
    router, router_notes = router_loss(policy, rows, compared)
    layout = workspace.layout(policy, parts, *(part.kind for part in router))
    refuse_untrainable(policy, rows, compared is not None)
    trainer = Trainer(
        policy=policy,
        parts=parts,
        source=workspace.source(parts, rows, policy, layout, observe),
        batching=Batching(settings.train.batch.records, workspace.micro(), layout, pad_id=workspace.pad_id),
        seed=settings.seed,
        world=run.world,
        saving=_saving(run, workspace, rows),
        observe=observe,
        stop_requested=stop_requested,
        span=span,
        dropout=compared is None,
        further=router,
    )
    if carried is not None:  # the model holds the weights rounded to its dtype; the float32 ones continue
        trainer.masters.load(carried.masters.state())
    return trainer, {
        "estimated_memory_bytes": workspace.estimate(policy.module, rows, frozen_bytes(policy)),
        "counts": workspace.COUNTS,
        "trainable_parameters": sum(p.numel() for p in trainer.masters.compute.values()),
        **({} if carried is not None else _reach(weights, parts.tuners, policy.module, notes)),
        "weights_id": workspace.loaded.weights_id,
        "data": workspace.prepared.report.to_json(),
        "layout": layout,
        "notes": [*dropout_notes(policy, compared), *router_notes],
    }


def _saving(run: Run, workspace: Workspace, rows: Sequence[Row]) -> Saving:
    save = run.recipe.settings.train.save
    recipe = fingerprint(run.recipe)
    return Saving(run.folder / "checkpoints", save.every, save.keep, recipe, inputs(workspace, rows))


def inputs(workspace: Workspace, rows: Sequence[Row]) -> dict[str, str]:
    """Digests of what a training starts from: a resumed run must find the same."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(row.id.encode())
        digest.update(numpy.ascontiguousarray(row.ids).tobytes())
        if "weights" in row.streams:
            digest.update(numpy.ascontiguousarray(row.streams["weights"].values).tobytes())
    source = workspace.recipe.settings.data.train
    return {
        f"The training data ({source.get('path') or source.get('kind')})": digest.hexdigest(),
        f"The model ({workspace.recipe.settings.model.path})": workspace.loaded.weights_id,
    }


def made_ready(tuners: Sequence[Tuner], module: nn.Module) -> list[str]:
    """Let every tuner refuse a model that it cannot train, or that could not be saved, before anything is computed.

    Returns what was changed in the model, in sentences.
    """
    refuse_unmerged(module)
    notes = make_savable(module, whole=len(tuners) > 1 or any(tuner.SAVES_MODEL for tuner in tuners))
    for tuner in tuners:
        notes += tuner.ready(module)
    return notes


def _reach(weights: list[Weight], tuners: Sequence[Tuner], module: nn.Module, notes: list[str]) -> dict[str, Any]:
    """What the training can change, and what its user should know of it."""
    trains = what_trains(weights, tuners, module)
    return {"trains": trains.to_json(), "warnings": [*notes, *trains.warnings()]}


def compared_with(parts: Parts, samples: bool) -> str | None:
    """What the training compares its forwards with, in words; then dropout is off. None: with nothing.

    Args:
        samples: the rows are answers of the model itself.
    """
    return parts.needs.second_pass or ("answers that it samples without dropout" if samples else None)


def router_loss(policy: Any, rows: Sequence[Row], compared: str | None) -> tuple[tuple[RouterLoss, ...], list[str]]:
    """The router's loss that the model's config asks for, and sentences on it, or on why it is not added."""
    if not isinstance(policy, TokenPolicy) or not rows:
        return (), []
    loss, reason = find_router_loss(policy, min(rows, key=len))
    if loss is not None and compared is None:
        words = f"{loss.coefficient:g} times the router's loss, as the model's config asks for, is part of the loss"
        return (loss,), [f"{words}: that of each row, averaged over rows."]
    if loss is not None:
        reason = f"this training compares the model with {compared}"
    return (), [
        f"The router's loss that the model's config asks for is not part of the loss: {reason}."
    ] if reason else []


def dropout_notes(policy: Any, compared: str | None) -> list[str]:
    """A sentence, if the training drops no values although the model or a tuner would."""
    levels = ", ".join(f"{level:g}" for level in dropouts(policy.module))
    if compared is None or not levels:
        return []
    return [f"Dropout ({levels}) is off in this training, which compares the model with {compared}."]


def refuse_untrainable(policy: Any, rows: Sequence[Row], compared: bool) -> None:
    """Refuse a model that would learn nothing of these rows, or that reads them in eval mode alone.

    Args:
        compared: the training compares forwards, which then run in eval mode.

    Raises:
        ModelError: see above.
    """
    rows = [row for row in rows if len(row.ids)] if isinstance(policy, TokenPolicy) else []
    if not rows:
        return
    trial = RowTrial(policy)
    trial.refuse_detached(min(rows, key=len))
    if not compared and (fault := trial.fault_of_training_mode(rows)):
        raise ModelError(
            f"{type(policy.module).__name__} reads these rows, but not in training mode: {fault}.",
            "Choose another model.",
        )


def carry_probe(trainer: Trainer, every: int | Literal["auto"]) -> None:
    """Let a trainer that has not started read the losses of all its rows every so many updates.

    Args:
        every: updates between two readings; "auto" gives AUTO_READINGS readings over the training.

    Raises:
        RecipeError: "auto" with a budget of seconds.
    """
    if every == "auto":
        updates = trainer.source.updates_left(trainer.position, trainer.batching.records)
        if updates is None:
            raise RecipeError("A budget of seconds has no known number of updates.", "Write `probe: {every: 50}`.")
        every = max(1, updates // AUTO_READINGS)
    assert isinstance(trainer.source, Records)
    rows = [row for record_rows in trainer.source.ordered.rows_by_record for row in record_rows]
    trainer.probes = [LossCurves(rows, every, trainer.batching.tokens)]


def trained_facts(trainer: Trainer, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The training's facts for run.json; `lines` are its updates in metrics.jsonl."""
    moved = [line for line in lines if not line.get("skipped")]
    position = trainer.position
    return {
        **position.to_json(),
        "target_tokens": position.targets,
        "tokens_per_second": position.tokens / position.seconds if position.seconds else None,
        "peak_memory_bytes": usage.peak(),
        "loss_first": moved[0]["loss"] if moved else None,
        "loss_last": moved[-1]["loss"] if moved else None,
        "skipped_updates": len(lines) - len(moved),
        "micro_tokens": trainer.micro.tokens,
        "budget": {trainer.source.budget.unit: trainer.source.budget.amount},
        "repeatable": trainer.source.budget.repeatable,
    }
