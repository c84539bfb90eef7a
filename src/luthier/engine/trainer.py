"""The training loop: draw rows until the budget is spent, update, report, save, and resume after a kill."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy
import torch

from luthier.engine import usage
from luthier.engine.assemble import Parts, master_weights
from luthier.engine.budget import Position
from luthier.engine.checkpoints import Checkpoint, Checkpoints, Saving
from luthier.engine.distributed import World
from luthier.engine.micro_batches import Batching, MicroBatches
from luthier.engine.part_states import PartStates, under
from luthier.engine.probe import Probe, run_probes
from luthier.engine.selection import Kept, Selection
from luthier.engine.source import Drawn, RowSource
from luthier.engine.update import NotFinite, UpdateReport, run_update
from luthier.models.checks import model_errors
from luthier.models.dropout import without_dropout
from luthier.models.policy import Policy
from luthier.objectives.base import Objective
from luthier.tuners.base import Tuner
from luthier.types import Row
from luthier.update import Update

SKIPPED = UpdateReport(loss=0.0, gradient_norm=0.0, counts={"targets": 0.0}, meters={})
"""Report of a skipped update: a rollout gave no rows to learn from. It counts, and changes nothing."""


@dataclass
class Trainer:
    """One training: the loop, and all that it needs. `train` may be called once.

    Attributes:
        stop_requested: asked after every update; a stop saves the state.
        dropout: False: values are dropped nowhere, neither in the model nor in what tuners add. Nor are they where the
            objective reads a second pass of a model.
        further: parts with terms of their own that train nothing, such as a router's loss.
        span: the part of a longer schedule that this training covers: (0.5, 1) for the second of two equal rounds.
    """

    policy: Policy
    parts: Parts
    source: RowSource
    batching: Batching
    seed: int = 0
    world: World = World()
    saving: Saving | None = None
    observe: Callable[[dict[str, Any]], None] = lambda event: None
    stop_requested: Callable[[], bool] = lambda: False
    position: Position = field(default_factory=Position)
    probes: Sequence[Probe] = ()
    span: tuple[float, float] = (0.0, 1.0)
    dropout: bool = True
    further: tuple[Tuner, ...] = ()

    def __post_init__(self) -> None:
        self.parts.refuse_modality(self.policy.modality)
        self.masters = master_weights(self.policy, self.parts)
        self.states = PartStates(self.parts.names, self.policy)
        # None of these keeps a method of the trainer: such a circle would hold a finished training's memory until a
        # garbage collection.
        self.micro = MicroBatches(self.batching, self.world, self.masters.clear)
        selector = self.parts.selector
        self.selection = None
        if selector is not None:
            self.selection = Selection(selector, self.states.of(selector), self.policy, self.micro, self.seed)
        self.checkpoints = Checkpoints(self.saving, self.world)

    @property
    def tuners(self) -> tuple[Tuner, ...]:
        """The tuners, in written order."""
        return self.parts.tuners

    def train(self) -> Literal["done", "stopped"]:
        """Run to the end of the budget, or until `stop_requested`; either way the state is saved."""
        set_training(self.policy, True)
        drops = self.dropout and self.parts.needs.second_pass is None
        with nullcontext() if drops else without_dropout(self.policy.module):
            status = self._updates()
        set_training(self.policy, False)
        # Saved before `finish`, which a resumed run calls again.
        self.save()
        if status == "done":
            for tuner in self.tuners:
                tuner.finish(self.policy.module)
        return status

    def _updates(self) -> Literal["done", "stopped"]:
        """All updates that are left, with their probes and checkpoints."""
        if self.position.updates == 0:
            run_probes(self.probes, self.policy, self.position, self.world)
        while self._one_update():
            run_probes(self.probes, self.policy, self.position, self.world)
            stop, due = self._agree_over_ranks()
            if stop:
                return "stopped"
            if due:
                self.save()
        return "done"

    def _one_update(self) -> bool:
        """Draw and carry out one update; False when the budget is spent."""
        started = time.perf_counter()
        drawn = self.source.draw(self.position, self.batching.records)
        if drawn is None:
            return False

        # The selector's state moves on with its choice, so it is copied first, for an update that fails.
        kept, selector_before = Kept(drawn.rows), {}
        if self.selection is not None:
            selector_before = self.selection.snapshot()
            kept = self.selection.keep(drawn.rows, self.position.updates + 1, self.observe)

        # The learning rate is that of the middle of this update's share of the budget: neither end is favoured.
        position = advanced(self.position, drawn, kept)
        done = self._scheduled(position)
        progress = (self._scheduled(self.position) + done) / 2

        try:
            with model_errors(self.policy.module):
                report = self._update(kept.rows, progress, done) if kept.rows else SKIPPED
        except NotFinite:
            # No weight has changed. Saving here lets a resumed run begin with this very update.
            if self.selection is not None:
                self.selection.restore(selector_before)
            self.save()
            raise

        # Only now does the update count: after an error or a kill before this line a resumed run repeats it.
        position.seconds = self.position.seconds + time.perf_counter() - started
        position.targets = self.position.targets + int(report.counts["targets"])
        self.position = position
        event = update_event(
            report,
            position,
            drawn,
            kept if self.selection is not None else None,
            updates_left=self.source.updates_left(position, self.batching.records),
            progress=self.source.budget.spent(position, len(self.source)),
            learning_rate=self.parts.optimizer.lr * self.parts.schedule.factor(progress),
        )
        self.observe(event)
        return True

    def _update(self, rows: Sequence[Row], progress: float, done: float) -> UpdateReport:
        """The update on these rows, cut smaller and tried again where memory runs out."""
        index = self.position.updates + 1
        # Rows whose loss has no gradient count in every denominator, but need no forward.
        adding = (*self.tuners, *self.further)
        with_gradient, without_gradient = _split_by_gradient(self.parts.objective, adding, rows)

        while True:
            # Seeded anew: no generator's state is saved, and a repeated attempt draws the same.
            seed_everything(self.seed, index, self.world.rank)
            update = Update(
                index=index,
                seed=self.seed,
                progress=progress,
                done=done,
                rows=rows,
                batches=self.micro.batches(with_gradient),
                without_gradient=self.micro.batches(without_gradient),
                names=self.parts.names,
                states=self.states.by_name,
            )
            try:
                return run_update(
                    self.policy,
                    self.parts.objective,
                    adding,
                    self.masters,
                    update,
                    clip=self.parts.optimizer.clip,
                    factor=self.parts.schedule.factor(progress),
                    world=self.world,
                )
            except (MemoryError, RuntimeError) as error:
                self.micro.expect_out_of_memory(error, rows, index)
            # Outside of `except`: the error is gone, and with it the tensors that its frames held.
            del update
            self.micro.halve(rows, index, self.observe)

    def _scheduled(self, position: Position) -> float:
        """Progress of a position of this training in the whole schedule, 0 to 1."""
        start, end = self.span
        return start + (end - start) * self.source.budget.spent(position, len(self.source))

    def _agree_over_ranks(self) -> tuple[bool, bool]:
        """(whether to stop, whether to save), the same on all ranks, whose clocks and signals differ."""
        reports = {
            "stop": float(self.stop_requested()),
            "save": float(self.checkpoints.due(self.position.updates)),
            "seconds": self.position.seconds / self.world.size,
        }
        sums = self.world.sum_numbers(reports)
        # The mean over ranks: a budget of seconds must end at the same update everywhere.
        self.position.seconds = sums["seconds"]
        return bool(sums["stop"]), bool(sums["save"])

    def save(self) -> None:
        """Write a checkpoint (rank 0), unless this position already has one."""
        self.checkpoints.save(self.position.updates, lambda: state_of(self))

    def resume(self) -> bool:
        """Continue from the newest checkpoint; False if there is none.

        Raises:
            RunError: the checkpoint was written under another recipe.
        """
        checkpoint = self.checkpoints.restore()
        if checkpoint is not None:
            load_state(self, checkpoint)
        return checkpoint is not None


def state_of(trainer: Trainer) -> Checkpoint:
    """All that a resumed run needs to train to the same bits."""
    drawn, source = trainer.source.state()
    tensors = trainer.masters.state() | trainer.states.tensors()
    for index, probe in enumerate(trainer.probes):
        tensors |= {f"probe/{index}/{name}": tensor for name, tensor in probe.state_dict().items()}
    tensors |= {f"source/{name}": tensor for name, tensor in drawn.items()}
    # Micro-batches that memory has cut smaller stay so: another cut would round otherwise.
    position, micro_tokens = trainer.position.to_json(), trainer.micro.tokens
    return Checkpoint(tensors, {"source": source, "position": position, "micro_tokens": micro_tokens})


def load_state(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Restore what `state_of` returned."""
    trainer.masters.load(checkpoint.tensors)
    trainer.states.load(checkpoint.tensors)
    for index, probe in enumerate(trainer.probes):
        probe.load_state_dict(under(f"probe/{index}/", checkpoint.tensors))
    trainer.source.load(under("source/", checkpoint.tensors), checkpoint.meta["source"])
    trainer.position = Position(**checkpoint.meta["position"])
    trainer.micro.tokens = checkpoint.meta["micro_tokens"]


def set_training(policy: Policy, training: bool) -> None:
    """Put the model and its companions into training or evaluation mode."""
    policy.module.train(training)
    for companion in policy.companions.values():
        companion.module.train(training)


def _split_by_gradient(
    objective: Objective, tuners: Sequence[Tuner], rows: Sequence[Row]
) -> tuple[Sequence[Row], Sequence[Row]]:
    """(rows whose loss has a gradient, rows that are only counted); all are forwarded if none has a gradient."""
    if any(tuner.WHOLE_ROWS for tuner in tuners):  # the tuner's own terms need every row's forward
        return rows, []
    with_gradient: list[Row] = []
    without_gradient: list[Row] = []
    for row in rows:
        (with_gradient if objective.has_gradient(row) else without_gradient).append(row)
    # Meters are means over the rows that forwards read: without any forward the update would report none.
    return (with_gradient, without_gradient) if with_gradient else (rows, [])


def advanced(position: Position, drawn: Drawn, kept: Kept) -> Position:
    """The position after an update on the kept rows; seconds and targets are counted once the update is done."""
    return Position(
        updates=position.updates + 1,
        records=position.records + drawn.records,
        tokens=position.tokens + sum(len(row) for row in kept.rows),
        seconds=position.seconds,
        looked_rows=position.looked_rows + kept.scored_rows,
        looked_tokens=position.looked_tokens + kept.scored_tokens,
        generated_tokens=position.generated_tokens + drawn.generated,
        unspent_records=drawn.unspent,
        skipped_tokens=position.skipped_tokens + drawn.skipped_tokens,
    )


def update_event(
    report: UpdateReport,
    position: Position,
    drawn: Drawn,
    kept: Kept | None,
    *,
    updates_left: int | None,
    progress: float,
    learning_rate: float,
) -> dict[str, Any]:
    """The event that observers get after an update; `kept` is None without a selector."""
    selected = {} if kept is None else {"kept": len(kept.rows), "looked_tokens": position.looked_tokens}
    return {
        "event": "update",
        "update": position.updates,
        "updates_left": updates_left,
        "progress": progress,
        "loss": report.loss,
        **drawn.facts,
        **selected,
        **report.meters,
        "learning_rate": learning_rate,
        "gradient_norm": report.gradient_norm,
        "targets": position.targets,
        "tokens": position.tokens,
        "records": position.records,
        "seconds": position.seconds,
        "tokens_per_second": position.tokens / position.seconds,
        "memory_bytes": usage.peak(),
    }


def seed_everything(seed: int, update: int, rank: int) -> None:
    """Seed every generator from (seed, update, rank), so that no generator state has to be saved."""
    mixed = (seed * 1_000_003 + update) * 1_009 + rank
    torch.manual_seed(mixed)
    numpy.random.seed(mixed % 2**32)
    random.seed(mixed)
