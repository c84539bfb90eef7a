"""The training of one step: its parts, the tuned model and its rows, put together for the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from luthier.engine import usage
from luthier.engine.assemble import Parts, frozen_bytes
from luthier.engine.checkpoints import Saving
from luthier.engine.micro_batches import Batching
from luthier.engine.probe import LossCurves
from luthier.engine.source import Records
from luthier.engine.trainer import Trainer
from luthier.errors import RecipeError
from luthier.modalities.base import Workspace
from luthier.recipe.modality import modality_of
from luthier.runs.run import Run, fingerprint

LOOKS = 10
"""How often an `auto` probe looks again after the first time."""
WHOLE_SCHEDULE = (0.0, 1.0)


def training(
    run: Run,
    workspace: Workspace,
    observe: Callable[[dict[str, Any]], None],
    stop_requested: Callable[[], bool],
    carried: Trainer | None = None,
    span: tuple[float, float] = WHOLE_SCHEDULE,
) -> tuple[Trainer, dict[str, Any]]:
    """A trainer for a recipe of one step, and what is known of the training before it starts.

    Args:
        carried: the training that this one carries on: its model and tuners as they are, its optimiser's state.
        span: the part of the schedule that this training is.

    Raises:
        LuthierError: the parts do not fit each other, the model or the data.
    """
    settings = run.recipe.settings
    train = settings.train

    parts = Parts.of(run.recipe)
    if carried is not None:
        parts = replace(parts, tuners=carried.tuners)  # these are on the model already
    parts.refuse_conflicts(modality_of(settings.model, run.recipe.base))

    # Columns of the model as it is are computed before the tuners change it.
    rows = workspace.rows(run, parts)
    usage.reset_peak()
    policy = workspace.tune(run, parts, rows, alone=span == WHOLE_SCHEDULE) if carried is None else carried.policy
    layout = workspace.layout(policy, parts)

    trainer = Trainer(
        policy=policy,
        parts=parts,
        source=workspace.source(parts, rows, policy, layout, observe),
        batching=Batching(train.batch.records, workspace.micro(), layout, pad_id=workspace.pad_id),
        seed=settings.seed,
        world=run.world,
        saving=Saving(run.folder / "checkpoints", train.save.every, train.save.keep, fingerprint(run.recipe)),
        observe=observe,
        stop_requested=stop_requested,
        span=span,
    )
    if carried is not None:
        trainer.masters.load(carried.masters.state())
    return trainer, {
        "estimated_memory_bytes": workspace.estimate(policy.module, rows, frozen_bytes(policy)),
        "counts": workspace.COUNTS,
        "trainable_parameters": sum(p.numel() for p in trainer.masters.compute.values()),
        "weights_id": workspace.loaded.weights_id,
        "data": workspace.prepared.report.to_json(),
    }


def carry_probe(trainer: Trainer, every: int | Literal["auto"]) -> None:
    """Let a trainer that starts read the losses of all its rows every so many updates; auto: LOOKS times."""
    left = trainer.source.updates_left(trainer.position, trainer.batching.records) if every == "auto" else every * LOOKS
    if left is None:
        raise RecipeError("A budget of seconds has no known number of updates.", "Write `probe: {every: 50}`.")
    assert isinstance(trainer.source, Records)
    rows = [row for record_rows in trainer.source.ordered.rows_by_record for row in record_rows]
    trainer.probes = [LossCurves(rows, max(1, left // LOOKS), trainer.batching.tokens)]


def trained_facts(trainer: Trainer, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The training's numbers for run.json; `lines` are its updates in metrics.jsonl."""
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
