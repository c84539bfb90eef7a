"""The training of one step: tuned model, rows, optimiser, put together for the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from luthier import parts
from luthier.data.batches import Layout
from luthier.engine import memory
from luthier.engine.budget import Budget
from luthier.engine.probe import Trajectory
from luthier.engine.score import with_column
from luthier.engine.source import Records
from luthier.engine.trainer import Batching, Saving, Trainer
from luthier.errors import RecipeError
from luthier.models.context import checkpoint_layers
from luthier.models.policy import PADDED, TokenPolicy
from luthier.objectives.base import Objective, build_objective, members_of, reads_of
from luthier.rollouts.base import build_chain
from luthier.select.base import Selector
from luthier.steps.columns import logprobs_of, with_fields, with_references
from luthier.steps.ground import (
    Ground,
    build_tuners,
    frozen_copies,
    micro_tokens,
    predicted_memory,
    refuse_other_rules,
    training_rows,
    tuned_policy,
)
from luthier.steps.record import Run, fingerprint
from luthier.steps.rollout import columns_read, make_rollouts
from luthier.tuners.base import Planning, Tuner
from luthier.types import Row

LOOKS = 10
"""How often an `auto` probe looks again after the first time."""


def training(
    run: Run,
    ground: Ground,
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
    rows = training_rows(objective, ground.prepared) if settings.rl else _rows(run, ground, objective, selector)
    memory.reset_peak()
    policy, tuners = _tuned(ground, objective, rows) if live is None else (live.policy, list(live.tuners))
    assert isinstance(policy, TokenPolicy)
    layout = _layout(train.batch.layout, policy, [*members_of(objective), *tuners])
    micro = micro_tokens(run.recipe, policy.module, ground.device)
    pad = ground.loaded.tokenizer.pad_token_id
    kept = selector.keep if selector else 1.0
    budget = Budget(settings.budget.unit, settings.budget.amount, kept)  # pyright: ignore[reportArgumentType]
    shuffled = train.batch.order == "shuffled"
    trainer = Trainer(
        policy=policy,
        tuners=tuners,
        objective=objective,
        source=make_rollouts(ground, rows, policy, objective, budget, micro, observe, layout)
        if settings.rl
        else Records(rows, settings.seed, budget, shuffled),
        optimizer=optimizer,
        schedule=parts.build("schedule", train.schedule, run.recipe.base),
        batching=Batching(train.batch.records, micro, layout, pad_id=0 if pad is None else pad),
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
    estimate = predicted_memory(run.recipe, policy.module, rows, frozen_copies(policy))
    return trainer, {
        "estimated_memory_bytes": estimate.total,
        "trainable_parameters": sum(p.numel() for p in trainer.masters.compute.values()),
        "weights_id": ground.loaded.weights_id,
        "data": ground.prepared.report.to_json(),
    }


def _layout(wanted: str, policy: TokenPolicy, trained: Sequence[Objective | Tuner]) -> Layout:
    """The layout of batches; auto shares prompts where the model can and no part looks at them.

    Raises:
        ModelError, RecipeError: the layout that the recipe names cannot be had.
    """
    looking = next((part.kind for part in trained if part.WHOLE_ROWS), None)
    if wanted == "packed":
        policy.verify_packing()
        return "packed"
    if wanted == "shared":
        if looking is not None:
            raise RecipeError(f"`{looking}` looks at whole records, which then cannot share a prompt.", PADDED)
        policy.verify_sharing()
        return "shared"
    return "shared" if wanted == "auto" and looking is None and policy.can_share() else "padded"


def carry_probe(trainer: Trainer, every: int | Literal["auto"]) -> None:
    """Let a trainer that starts read the losses of all its rows every so many updates; auto: LOOKS times."""
    left = trainer.source.updates_left(trainer.position, trainer.batching.records) if every == "auto" else every * LOOKS
    if left is None:
        raise RecipeError("A budget of seconds has no known number of updates.", "Write `probe: {every: 50}`.")
    assert isinstance(trainer.source, Records)
    rows = [row for atom in trainer.source.ordered.atoms for row in atom]
    trainer.probes = [Trajectory(rows, max(1, left // LOOKS), trainer.batching.tokens)]


def _rows(run: Run, ground: Ground, objective: Objective, selector: Selector | None) -> list[Row]:
    """The training rows with every column that objective, selector and tuners read."""
    rows = with_references(run, ground, training_rows(objective, ground.prepared), reads_of(objective))
    for read in selector.reads() if selector else ():
        rows = with_column(rows, read, logprobs_of(run, ground, rows, read.split(":", 1)[1]))
    names = [name for tuner in build_tuners(run.recipe) for name in tuner.fields]
    return with_fields(rows, ground.prepared.records, names)


def _tuned(ground: Ground, objective: Objective, rows: list[Row]) -> tuple[TokenPolicy, list[Tuner]]:
    settings, module = ground.recipe.settings, ground.loaded.module
    if settings.train.checkpointing:
        checkpoint_layers(module)
    tuners, given = build_tuners(ground.recipe), Planning(settings.seed, rows)
    if settings.rl is None:
        return tuned_policy(module, tuners, objective, given), tuners
    chain = build_chain(settings.rl.advantages, ground.recipe.base)
    columns = columns_read(settings.rl, objective, chain)
    live = {name.split(":")[1] for name in columns if name.startswith("logprobs:")}
    temperature = settings.rl.generate.temperature
    return tuned_policy(module, tuners, objective, given, temperature, live=live), tuners


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
