"""The training loop: draw rows until the budget is spent, update, report, save, and go on after a kill."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
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
from luthier.engine.probe import Probe, assert_unchanged
from luthier.engine.selection import Kept, Selection
from luthier.engine.source import Drawn, RowSource
from luthier.engine.update import NotFinite, UpdateReport, run_update
from luthier.models.policy import Policy
from luthier.tuners.base import Tuner
from luthier.types import Row
from luthier.update import Update

SKIPPED = UpdateReport(loss=0.0, gradient_norm=0.0, counts={"targets": 0.0}, meters={})
"""Report of an update without rows: a rollout gave nothing to learn from. It is counted and changes nothing."""


@dataclass
class Trainer:
    """Everything one training needs. `train` may be called once.

    `span` is the part of a longer schedule that this training is: (0.5, 1) for the second of two equal rounds.
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

    def __post_init__(self) -> None:
        self.parts.refuse_modality(self.policy.modality)
        self.masters = master_weights(self.policy, self.parts)
        self.states = PartStates(self.parts.names, self.policy)
        self.micro = MicroBatches(self.batching, self.world, self.masters.clear)
        selector = self.parts.selector
        remembers = None if selector is None else self.states.of(selector)
        self.selection = Selection(selector, remembers, self.policy, self.micro, self.seed)
        self.checkpoints = Checkpoints(self.saving, self.world)

    @property
    def tuners(self) -> tuple[Tuner, ...]:
        """The tuners, in written order."""
        return self.parts.tuners

    def train(self) -> Literal["done", "stopped"]:
        """Run to the end of the budget, or until `stop_requested`; either way the state is saved."""
        self._mode(training=True)
        status: Literal["done", "stopped"] = "done"
        if self.position.updates == 0:
            self._probe()
        while self._one_update():
            self._probe()
            stop, due = self._agreed()
            if stop:
                status = "stopped"
                break
            if due:
                self.save()
        self._mode(training=False)
        self.save()  # before `finish`, which a resumed run carries out again
        if status == "done":
            for tuner in self.tuners:
                tuner.finish(self.policy.module)
        return status

    def _one_update(self) -> bool:
        """Draw and carry out one update; False when the budget is spent."""
        started = time.perf_counter()
        drawn = self.source.draw(self.position, self.batching.records)
        if drawn is None:
            return False

        # The selector looks at the candidates and moves on; where the update fails it goes back.
        remembered = self.selection.remembered()
        kept = self.selection.keep(drawn.rows, self.position.updates + 1, self.observe)

        # The schedule is read at the middle of this update's share of the budget.
        position = advanced(self.position, drawn, kept)
        done = self._scheduled(position)
        progress = (self._scheduled(self.position) + done) / 2

        try:
            report = self._update(kept.rows, progress, done) if kept.rows else SKIPPED
        except NotFinite:
            # Nothing has moved: what is saved is the state before this update.
            self.selection.undo(remembered)
            self.save()
            raise

        # Only now does the update count: a stop or an error before this line repeats it.
        position.seconds = self.position.seconds + time.perf_counter() - started
        position.targets = self.position.targets + int(report.counts["targets"])
        self.position = position
        self.observe(
            update_event(
                report,
                position,
                drawn,
                kept if self.parts.selector is not None else None,
                updates_left=self.source.updates_left(position, self.batching.records),
                progress=self._spent(position),
                learning_rate=self.parts.optimizer.lr * self.parts.schedule.factor(progress),
            )
        )
        return True

    def _update(self, rows: Sequence[Row], progress: float, done: float) -> UpdateReport:
        """The update on these rows, cut smaller and tried again where memory runs out."""
        attempt = lambda: self._try_update(rows, progress, done)  # noqa: E731
        return self.micro.within_memory(rows, self.position.updates + 1, attempt, self.observe)

    def _try_update(self, rows: Sequence[Row], progress: float, done: float) -> UpdateReport:
        index = self.position.updates + 1
        # Seeded anew, so that no generator's state is saved, and a repeated attempt draws the same.
        seed_everything(self.seed, index, self.world.rank)
        with_gradient, without = _split_by_gradient(self.parts, rows)
        update = Update(
            index=index,
            seed=self.seed,
            progress=progress,
            done=done,
            rows=rows,
            batches=self.micro.batches(with_gradient),
            without_gradient=self.micro.batches(without),
            names=self.parts.names,
            states=self.states.by_name,
        )
        return run_update(
            self.policy,
            self.parts.objective,
            self.tuners,
            self.masters,
            update,
            clip=self.parts.optimizer.clip,
            factor=self.parts.schedule.factor(progress),
            world=self.world,
        )

    def _spent(self, position: Position) -> float:
        return self.source.budget.spent(position, len(self.source))

    def _scheduled(self, position: Position) -> float:
        """The place in the whole schedule, 0 to 1, of a position of this training."""
        start, end = self.span
        return start + (end - start) * self._spent(position)

    def _agreed(self) -> tuple[bool, bool]:
        """Whether to stop and whether to save, the same on all ranks: their clocks and signals differ."""
        sums = self.world.sum_numbers(
            {
                "stop": float(self.stop_requested()),
                "save": float(self.checkpoints.due(self.position.updates)),
                "seconds": self.position.seconds / self.world.size,
            }
        )
        self.position.seconds = sums["seconds"]
        return bool(sums["stop"]), bool(sums["save"])

    def _probe(self) -> None:
        """Let the probes that are due look; what they looked at is cost."""
        for probe in self.probes:
            if self.position.updates % probe.every == 0:
                with assert_unchanged(self.policy.module):
                    rows = probe.look(self.policy, self.position.updates, self.world)
                self.position.looked_rows += len(rows)
                self.position.looked_tokens += sum(len(row) for row in rows)

    def _mode(self, training: bool) -> None:
        for module in (self.policy.module, *(companion.module for companion in self.policy.companions.values())):
            module.train(training)

    def save(self) -> None:
        """Write a checkpoint (rank 0), unless this position already has one."""
        self.checkpoints.save(self.position.updates, self._checkpoint)

    def _checkpoint(self) -> Checkpoint:
        drawn, source = self.source.state()
        tensors = self.masters.state() | self.states.tensors()
        for index, probe in enumerate(self.probes):
            tensors |= {f"probe/{index}/{name}": value for name, value in probe.state_dict().items()}
        tensors |= {f"source/{name}": value for name, value in drawn.items()}
        meta = {"source": source, "position": self.position.to_json(), "micro_tokens": self.micro.tokens}
        return Checkpoint(tensors, meta)

    def resume(self) -> bool:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            RunError: it was written under another recipe.
        """
        checkpoint = self.checkpoints.restore()
        if checkpoint is None:
            return False
        self.masters.load(checkpoint.tensors)
        self.states.load(checkpoint.tensors)
        for index, probe in enumerate(self.probes):
            probe.load_state_dict(under(f"probe/{index}/", checkpoint.tensors))
        self.source.load(under("source/", checkpoint.tensors), checkpoint.meta["source"])
        self.position = Position(**checkpoint.meta["position"])
        self.micro.tokens = checkpoint.meta["micro_tokens"]
        return True


def _split_by_gradient(parts: Parts, rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Row]]:
    """Rows whose loss has a gradient, and rows that are only counted; without any of the first all are forwarded."""
    if any(tuner.WHOLE_ROWS for tuner in parts.tuners):  # its own terms are of every row
        return rows, []
    having = [parts.objective.has_gradient(row) for row in rows]
    if not any(having):
        return rows, []
    pairs = list(zip(rows, having, strict=True))
    return [row for row, has in pairs if has], [row for row, has in pairs if not has]


def advanced(position: Position, drawn: Drawn, kept: Kept) -> Position:
    """The position after an update of these rows, seconds and targets not yet counted."""
    return Position(
        updates=position.updates + 1,
        records=position.records + drawn.records,
        tokens=position.tokens + sum(len(row) for row in kept.rows),
        seconds=position.seconds,
        looked_rows=position.looked_rows + kept.looked_rows,
        looked_tokens=position.looked_tokens + kept.looked_tokens,
        generated_tokens=position.generated_tokens + drawn.generated,
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
    """What an observer is told of an update; `kept` is None without a selector."""
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
    """Seed every generator from (seed, update, rank): no generator state has to be saved."""
    mixed = (seed * 1_000_003 + update) * 1_009 + rank
    torch.manual_seed(mixed)
    numpy.random.seed(mixed % 2**32)
    random.seed(mixed)
