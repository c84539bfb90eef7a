"""The training of one step: tuned model, rows, optimiser, put together for the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from luthier import parts
from luthier.engine import memory
from luthier.engine.probe import LossCurves
from luthier.engine.source import Records
from luthier.engine.trainer import Batching, Saving, Trainer
from luthier.errors import RecipeError
from luthier.modalities.base import Workspace, budget_of, build_tuners, frozen_bytes, refuse_other_rules, tuned_policy
from luthier.models.context import checkpoint_layers
from luthier.objectives.base import Objective
from luthier.objectives.sum import build_objective, members_of
from luthier.runs.run import Run, fingerprint
from luthier.tuners.base import Tuner, TunerInputs
from luthier.types import Row

LOOKS = 10
"""How often an `auto` probe looks again after the first time."""


def training(
    run: Run,
    workspace: Workspace,
    observe: Callable[[dict[str, Any]], None],
    stop_requested: Callable[[], bool],
    live: Trainer | None = None,
    span: tuple[float, float] = (0.0, 1.0),
) -> tuple[Trainer, dict[str, Any]]:
    """A trainer for a recipe of one step, and what is known of the training before it starts.

    Args:
        live: the training that this one carries on: its model and tuners as they are, its optimiser's state.
        span: the part of the schedule that this training is.
    """
    settings = run.recipe.settings
    train = settings.train
    objective = build_objective(train.objective, run.recipe.base)
    optimizer = parts.build("optimizer", train.optimizer, run.recipe.base)
    refuse_other_rules(build_tuners(run.recipe) if live is None else live.tuners, optimizer)
    selector = None if train.select is None else parts.build("selector", train.select, run.recipe.base)
    rows = workspace.rows(run, objective, selector)
    memory.reset_peak()
    policy, tuners = _tuned(run, workspace, objective, rows, span) if live is None else (live.policy, list(live.tuners))
    layout = workspace.layout(policy, [*members_of(objective), *tuners])
    budget = budget_of(run.recipe)
    trainer = Trainer(
        policy=policy,
        tuners=tuners,
        objective=objective,
        source=workspace.source(rows, policy, objective, budget, layout, observe),
        optimizer=optimizer,
        schedule=parts.build("schedule", train.schedule, run.recipe.base),
        batching=Batching(train.batch.records, workspace.micro(), layout, pad_id=workspace.pad_id),
        seed=settings.seed,
        world=run.world,
        saving=Saving(run.folder / "checkpoints", train.save.every, train.save.keep, fingerprint(run.recipe)),
        observe=observe,
        stop_requested=stop_requested,
        selector=selector,
        span=span,
    )
    if live is not None:
        trainer.masters.load(live.masters.state())
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


def _tuned(
    run: Run, workspace: Workspace, objective: Objective, rows: list[Row], span: tuple[float, float]
) -> tuple[Any, list[Tuner]]:
    settings, module = workspace.recipe.settings, workspace.loaded.module
    if settings.train.checkpointing:
        checkpoint_layers(module)
    tuners, given = build_tuners(workspace.recipe), TunerInputs(settings.seed, rows)
    states = workspace.states(run, objective, rows) if span == (0.0, 1.0) else None  # else others will carry on from it
    live = workspace.live(objective)
    return tuned_policy(module, tuners, objective, given, make=workspace.policy, live=live, states=states), tuners


def trained_facts(trainer: Trainer, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The training's numbers for run.json; `lines` are its updates in metrics.jsonl."""
    moved = [line for line in lines if not line.get("skipped")]
    position = trainer.position
    return {
        **position.to_json(),
        "target_tokens": position.targets,
        "tokens_per_second": position.tokens / position.seconds if position.seconds else None,
        "peak_memory_bytes": memory.peak(),
        "loss_first": moved[0]["loss"] if moved else None,
        "loss_last": moved[-1]["loss"] if moved else None,
        "skipped_updates": len(lines) - len(moved),
        "micro_tokens": trainer.micro_tokens,
        "budget": {trainer.source.budget.unit: trainer.source.budget.amount},
        "repeatable": trainer.source.budget.repeatable,
    }
