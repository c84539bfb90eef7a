"""The training loop: draw rows until the budget is spent, update, report, save, and go on after a kill."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy
import torch

from luthier.data.batches import Layout, collate, group_by_record, micro_batches, positions
from luthier.engine import checkpoint, memory, selection
from luthier.engine.budget import Position
from luthier.engine.distributed import World
from luthier.engine.master_weights import MasterWeights, ParameterGroup
from luthier.engine.probe import Probe, assert_unchanged
from luthier.engine.selection import Kept
from luthier.engine.source import Drawn, RowSource
from luthier.engine.update import NotFinite, UpdateReport, run_update
from luthier.errors import RecipeError, RunError
from luthier.models.policy import Companion, Policy
from luthier.objectives.base import Objective
from luthier.objectives.sum import members_of
from luthier.select.base import Selector
from luthier.tuners.base import Tuner
from luthier.types import Batch, Row
from luthier.update import PartNames, Update

Found = TypeVar("Found")
SAVE_SECONDS = 300.0
NOTHING = UpdateReport(loss=0.0, gradient_norm=0.0, counts={"targets": 0.0}, meters={})
"""Of an update whose source had no row to train on: it is counted, and nothing moves."""


@dataclass(frozen=True)
class Batching:
    """`records` per update; `tokens` per forward (padding included); how rows are laid out."""

    records: int = 16
    tokens: int = 2048
    layout: Layout = "padded"
    side: Literal["right", "left"] = "right"
    pad_id: int = 0


@dataclass(frozen=True)
class Saving:
    """Where checkpoints go, after how many updates ("auto": every SAVE_SECONDS; None: at the end), how many stay."""

    folder: Path
    every: int | Literal["auto"] | None = "auto"
    keep: int = 2
    fingerprint: str = ""


@dataclass
class Trainer:
    """Everything one training needs. `train` may be called once.

    `span` is the part of a longer schedule that this training is: (0.5, 1) for the second of two equal rounds.
    """

    policy: Policy
    tuners: Sequence[Tuner]
    objective: Objective
    source: RowSource
    optimizer: Any
    schedule: Any
    batching: Batching
    seed: int = 0
    world: World = World()
    saving: Saving | None = None
    observe: Callable[[dict[str, Any]], None] = lambda event: None
    stop_requested: Callable[[], bool] = lambda: False
    position: Position = field(default_factory=Position)
    selector: Selector | None = None
    probes: Sequence[Probe] = ()
    span: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        looking = [self.selector] if self.selector is not None and self.selector.FORWARD else []
        _refuse_other_modalities(self.policy, [*members_of(self.objective), *looking])
        named = {name: p for tuner in self.tuners for name, p in tuner.parameters(self.policy.module)}
        if not named:
            raise RunError("The tuner leaves nothing to train.")
        companions = [_group(name, one) for name, one in self.policy.companions.items()]
        self.masters = MasterWeights(named.items(), self.optimizer, companions, self._own_optimizers())
        self.micro_tokens = self.batching.tokens
        parts = [*members_of(self.objective), *self.tuners, *([self.selector] if self.selector else [])]
        self.states = {f"{index}": part.start(self.policy) for index, part in enumerate(parts)}
        self.names = PartNames((f"{index}", part) for index, part in enumerate(parts))
        self._saved_at = time.perf_counter()
        self._saved_update = -1

    def _own_optimizers(self) -> dict[str, Any]:
        """What moves the parameters of tuners with a rule of their own, by name."""
        rules = [(tuner, tuner.optimizer(self.optimizer)) for tuner in self.tuners]
        return {name: r for t, r in rules if r is not None for name, _ in t.parameters(self.policy.module)}

    def train(self) -> Literal["done", "stopped"]:
        """Run to the end of the budget, or until `stop_requested`; either way the state is saved."""
        self._mode(training=True)
        status: Literal["done", "stopped"] = "done"
        if self.position.updates == 0:
            self._probe()
        while self._one():
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

    def _probe(self) -> None:
        """Let the probes that are due look; what they looked at is cost."""
        for probe in self.probes:
            if self.position.updates % probe.every == 0:
                with assert_unchanged(self.policy.module):
                    rows = probe.look(self.policy, self.position.updates, self.world)
                self.position.looked_rows += len(rows)
                self.position.looked_tokens += sum(len(row) for row in rows)

    def _mode(self, training: bool) -> None:
        for module in (self.policy.module, *(one.module for one in self.policy.companions.values())):
            module.train(training)

    def _agreed(self) -> tuple[bool, bool]:
        """Whether to stop and whether to save, the same on all ranks: their clocks and signals differ."""
        said = self.world.sum_numbers(
            {
                "stop": float(self.stop_requested()),
                "save": float(self._save_due()),
                "seconds": self.position.seconds / self.world.size,
            }
        )
        self.position.seconds = said["seconds"]
        return bool(said["stop"]), bool(said["save"])

    def _one(self) -> bool:
        """Draw and carry out one update; False when the budget is spent."""
        started = time.perf_counter()
        drawn = self.source.draw(self.position, self.batching.records)
        if drawn is None:
            return False
        remembered = self._selector_state()
        kept = self._select(drawn.rows)
        after_position = self._advanced(drawn, kept)
        start, end = self.span
        done = start + (end - start) * self._spent(after_position)
        progress = (start + (end - start) * self._spent(self.position) + done) / 2
        try:
            report = self._update(kept.rows, progress, done) if kept.rows else NOTHING
        except NotFinite:
            self._forget_selection(remembered)
            self.save()
            raise
        after_position.seconds = self.position.seconds + time.perf_counter() - started
        after_position.targets = self.position.targets + int(report.counts["targets"])
        self.position = after_position
        self._tell(report, progress, drawn, kept)
        return True

    def _spent(self, position: Position) -> float:
        return self.source.budget.spent(position, len(self.source))

    def _advanced(self, drawn: Drawn, kept: Kept) -> Position:
        position = self.position
        return Position(
            updates=position.updates + 1,
            records=position.records + drawn.records,
            tokens=position.tokens + sum(len(row) for row in kept.rows),
            seconds=position.seconds,
            looked_rows=position.looked_rows + kept.looked_rows,
            looked_tokens=position.looked_tokens + kept.looked_tokens,
            generated_tokens=position.generated_tokens + drawn.generated,
        )

    def _select(self, rows: Sequence[Row]) -> Kept:
        """The candidates that are trained on; looking at them changes nothing, so it may be repeated."""
        selector = self.selector
        if selector is None or not rows or self.position.updates < selector.warmup:
            return Kept(rows)
        rows_by_record = selection.group_drawn(rows)
        state, update = self.states[self.names.of(selector)], self.position.updates + 1
        pad, side = self.batching.pad_id, self.batching.side

        def look() -> selection.Features:
            return selection.look(self.policy, selector, state, rows, self.micro_tokens, pad, side, self.world)

        features = self._within_memory(rows, look)
        kept = selection.choose(selector, state, rows_by_record, features, self.seed, update)
        self.observe({"event": "kept", "update": update, "records": [row.id for row in kept]})
        if not selector.FORWARD:
            return Kept(kept)
        return Kept(kept, len(rows), sum(len(row) for row in rows))

    def _selector_state(self) -> dict[str, torch.Tensor]:
        """A copy of what the selector remembers, for an update that does not come to pass."""
        state = None if self.selector is None else self.states[self.names.of(self.selector)]
        return {} if state is None else {name: value.clone() for name, value in state.state_dict().items()}

    def _forget_selection(self, remembered: dict[str, torch.Tensor]) -> None:
        if remembered:
            self.states[self.names.of(self.selector)].load_state_dict(remembered)

    def _update(self, rows: Sequence[Row], progress: float, done: float) -> UpdateReport:
        return self._within_memory(rows, lambda: self._try_update(rows, progress, done))

    def _within_memory(self, rows: Sequence[Row], attempt: Callable[[], Found]) -> Found:
        """Make the attempt; when memory runs out, forget its gradients and try again with half the micro-batch."""
        while True:
            try:
                return attempt()
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                self.masters.clear()
                largest = max(positions(record_rows, self.batching.layout) for record_rows in group_by_record(rows))
                if self.world.size > 1 or self.micro_tokens <= largest:
                    raise RunError(
                        f"Out of memory at update {self.position.updates + 1} with micro-batches of"
                        f" {self.micro_tokens} tokens (longest record: {largest}).",
                        "Lower train.batch.micro or data.max_tokens, or set train.checkpointing=true.",
                    ) from error
            self.micro_tokens = max(largest, self.micro_tokens // 2)
            self.observe({"event": "micro", "tokens": self.micro_tokens, "update": self.position.updates + 1})
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _try_update(self, rows: Sequence[Row], progress: float, done: float) -> UpdateReport:
        index = self.position.updates + 1
        seed_everything(self.seed, index, self.world.rank)
        moving, still = self._moving(rows)
        update = Update(
            index=index,
            seed=self.seed,
            progress=progress,
            done=done,
            rows=rows,
            batches=self._batches(moving),
            without_gradient=self._batches(still),
            names=self.names,
            states=self.states,
        )
        return run_update(
            self.policy,
            self.objective,
            self.tuners,
            self.masters,
            update,
            clip=self.optimizer.clip,
            factor=self.schedule.factor(progress),
            world=self.world,
        )

    def _moving(self, rows: Sequence[Row]) -> tuple[Sequence[Row], Sequence[Row]]:
        """Rows that may move the model, and those that are only counted; all move where none of them would."""
        if any(tuner.WHOLE_ROWS for tuner in self.tuners):
            return rows, []
        moves = [self.objective.has_gradient(row) for row in rows]
        if not any(moves):
            return rows, []
        moving, still = ([r for r, m in zip(rows, moves, strict=True) if m is wanted] for wanted in (True, False))
        return moving, still

    def _batches(self, rows: Sequence[Row]) -> list[Batch]:
        """This rank's share of the rows, cut."""
        batching = self.batching
        cut = self.world.share(micro_batches(rows, self.micro_tokens, batching.layout))
        return [collate(micro, batching.layout, batching.pad_id, batching.side) for micro in cut]

    def _tell(self, report: UpdateReport, progress: float, drawn: Drawn, kept: Kept) -> None:
        position = self.position
        chosen = {} if self.selector is None else {"kept": len(kept.rows), "looked_tokens": position.looked_tokens}
        self.observe(
            {
                "event": "update",
                "update": position.updates,
                "updates_left": self.source.updates_left(position, self.batching.records),
                "progress": self._spent(position),
                "loss": report.loss,
                **drawn.facts,
                **chosen,
                **report.meters,
                "learning_rate": self.optimizer.lr * self.schedule.factor(progress),
                "gradient_norm": report.gradient_norm,
                "targets": position.targets,
                "tokens": position.tokens,
                "records": position.records,
                "seconds": position.seconds,
                "tokens_per_second": position.tokens / position.seconds,
                "memory_bytes": memory.peak(),
            }
        )

    def _save_due(self) -> bool:
        if self.saving is None or self.saving.every is None:
            return False
        if self.saving.every == "auto":
            return time.perf_counter() - self._saved_at > SAVE_SECONDS
        return self.position.updates % self.saving.every == 0

    def save(self) -> None:
        """Write a checkpoint (rank 0), unless this position already has one."""
        if self.saving is None or self._saved_update == self.position.updates:
            return
        self._saved_at, self._saved_update = time.perf_counter(), self.position.updates
        if self.world.rank == 0:
            tensors = self.masters.state()
            for index, state in self.states.items():
                if state is not None:
                    tensors |= {f"state/{index}/{name}": value for name, value in state.state_dict().items()}
            for index, probe in enumerate(self.probes):
                tensors |= {f"probe/{index}/{name}": value for name, value in probe.state_dict().items()}
            drawn, source = self.source.state()
            tensors |= {f"source/{name}": value for name, value in drawn.items()}
            meta = {
                "source": source,
                "position": self.position.to_json(),
                "micro_tokens": self.micro_tokens,
                "fingerprint": self.saving.fingerprint,
            }
            saved = checkpoint.Checkpoint(tensors, meta)
            checkpoint.save(self.saving.folder, self.position.updates, saved, self.saving.keep)
        self.world.barrier()

    def resume(self) -> bool:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            RunError: it was written under another recipe.
        """
        found = checkpoint.newest(self.saving.folder) if self.saving is not None else None
        if found is None or self.saving is None:
            return False
        saved = checkpoint.load(found)
        if saved.meta["fingerprint"] != self.saving.fingerprint:
            raise RunError(
                f"The checkpoint {found} was written under another recipe.",
                "Resume with the recipe it was started with, or start a new run.",
            )
        self.masters.load(saved.tensors)
        for index, state in self.states.items():
            if state is not None:
                state.load_state_dict(_under(f"state/{index}/", saved.tensors))
        for index, probe in enumerate(self.probes):
            probe.load_state_dict(_under(f"probe/{index}/", saved.tensors))
        self.source.load(_under("source/", saved.tensors), saved.meta["source"])
        self.position = Position(**saved.meta["position"])
        self._saved_update = self.position.updates
        self.micro_tokens = saved.meta["micro_tokens"]
        return True


def _refuse_other_modalities(policy: Policy, readers: Sequence[Objective | Selector]) -> None:
    """Raise RecipeError for a part that does not work on this kind of model."""
    for part in readers:
        if policy.modality != part.MODALITY:
            raise RecipeError(
                f"`{part.kind}` works on models of the kind `{part.MODALITY}`; this one is `{policy.modality}`."
            )


def _group(name: str, companion: Companion) -> ParameterGroup:
    """A companion's parameters under names that no model has."""
    named = {f"companion/{name}/{key}": p for key, p in companion.module.named_parameters() if p.requires_grad}
    return ParameterGroup(named, companion.rate)


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def seed_everything(seed: int, update: int, rank: int) -> None:
    """Seed every generator from (seed, update, rank): no generator state has to be saved."""
    mixed = (seed * 1_000_003 + update) * 1_009 + rank
    torch.manual_seed(mixed)
    numpy.random.seed(mixed % 2**32)
    random.seed(mixed)


def _out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text
