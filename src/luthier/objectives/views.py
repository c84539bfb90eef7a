"""Views of a micro-batch that losses read: target positions in chunks, or rows; and the forward that fills them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from luthier.errors import RecipeError
from luthier.objectives._draws import keyed_uniform, position_keys
from luthier.parts import lazy
from luthier.types import Batch
from luthier.update import Update

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.models.kernels import head as heads
    from luthier.models.policy import TokenPolicy
else:
    torch = lazy("torch")
    heads = lazy("luthier.models.kernels.head")


@dataclass
class MicroBatchTargets:
    """All N targets of a micro-batch, without gradient: for losses that need statistics of a token's row."""

    head: heads.Head
    hidden: Tensor  # [N,D]
    targets: Tensor  # [N]
    owner: Tensor  # [N] index of each position's row
    streams: dict[str, Tensor]  # token streams [N]
    counts: Tensor  # [R] targets of each row

    @cached_property
    def logprob(self) -> Tensor:
        """log p(target) under the trained model, [N]; costs one more pass of the output head."""
        with torch.no_grad():
            return self.head.map(self.hidden, lambda piece, logits: heads.target_logprob(logits, self.targets[piece]))

    def mean(self, values: Tensor) -> Tensor:
        """Mean of values [N] over each position's row, [N]."""
        sums = torch.zeros(len(self.counts), dtype=values.dtype, device=values.device)
        return (sums.index_add(0, self.owner, values) / self.counts)[self.owner]


@dataclass
class TokenView:
    """One chunk of n target positions. `logits` is part of the graph: losses are differentiated through it."""

    logits: Tensor  # [n,V], fp32 or wider; the head reuses this memory, so clone what must outlive the loss
    targets: Tensor  # [n]
    streams: dict[str, Tensor]  # token streams at the chunk's positions, [n]
    hidden_of: dict[str, Any]  # reference name → (reference, hidden [n,D])
    keys: Tensor  # [n] int64: hash of (row id, position), for keyed draws
    record_targets: Tensor  # [n] targets of the row that each position belongs to
    update: Update
    micro_batch: MicroBatchTargets | None = None
    piece: slice = field(default_factory=lambda: slice(None))  # the chunk's positions within `micro_batch`

    @cached_property
    def logprob(self) -> Tensor:
        """log p(target) under the trained model, [n], differentiable."""
        return heads.target_logprob(self.logits, self.targets)

    @property
    def weights(self) -> Tensor:
        """Token weights, [n]."""
        return self.streams["weights"]

    def stream(self, name: str) -> Tensor:
        """A token stream at the chunk's positions, [n].

        Raises:
            RecipeError: the rows have no such stream.
        """
        if name not in self.streams:
            raise missing_stream(name)
        return self.streams[name]

    def record_mean(self, values: Callable[[MicroBatchTargets], Tensor]) -> Tensor:
        """Mean over each position's row, [n], of per-token values [N]; no gradient."""
        assert self.micro_batch is not None
        return self.micro_batch.mean(values(self.micro_batch).detach())[self.piece]

    def logits_of(self, reference: str) -> Tensor:
        """Logits [n,V] of a reference named in READS as `logits:<reference>`; no gradient.

        Only hidden states are cached for the micro-batch: its logits [N,V] would not fit in memory.
        """
        handle, hidden = self.hidden_of[reference]
        return handle.logits(hidden)

    def uniform(self, draws: int) -> Tensor:
        """Uniform numbers [n,draws] in [0,1), float64, a function of (seed, update, row, position, draw) alone."""
        return keyed_uniform(self.keys, self.update, draws)

    def meter(self, name: str, values: Tensor, unit: str = "targets") -> None:
        """Report the mean of per-token values [n] over the update."""
        self.update.meter(name, values.detach().sum(), unit)


class TokenLoss(Protocol):
    """The part of `TokenObjective` that the pass of the head needs."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Streams and references that the loss needs."""
        ...

    def weighted(self, view: TokenView) -> Tensor:
        """Loss [n] of each target position of the chunk, times the position's weight."""
        ...


def token_pass(
    policy: TokenPolicy,
    batch: Batch,
    update: Update,
    members: Sequence[tuple[TokenLoss, float]],
    hidden: Tensor,
) -> Tensor:
    """One pass of the head over `hidden` [N,D] for several token objectives: Σ factor × weighted loss, a scalar.

    The members share the pass because the logits [N,V] are the largest product of an update; they exist for one
    chunk of positions at a time.
    """
    rows, columns = batch.targets()
    targets = batch.ids[rows, columns]
    streams = {name: s.values[rows, columns] for name, s in batch.streams.items() if s.axis == "token"}
    reads: set[str] = set()
    for objective, _ in members:
        reads |= set(objective.reads)
    hidden_of = {}
    for read in sorted(reads):  # sorted, so that every rank runs the references in the same order
        kind, _, name = read.partition(":")
        if kind == "logits":
            hidden_of[name] = (policy.references[name], policy.references[name].hidden(batch))
    keys = position_keys(batch)
    owner = batch.example_of[rows, columns]
    counts = owner.new_zeros(len(batch.examples)).index_add_(0, owner, torch.ones_like(owner))
    record_targets = counts[owner]
    micro_batch = MicroBatchTargets(policy.head, hidden.detach(), targets, owner, streams, counts)

    def loss(piece: slice, logits: Tensor) -> Tensor:
        view = TokenView(
            logits=logits,
            targets=targets[piece],
            streams={name: values[piece] for name, values in streams.items()},
            hidden_of={name: (handle, states[piece]) for name, (handle, states) in hidden_of.items()},
            keys=keys[piece],
            record_targets=record_targets[piece],
            update=update,
            micro_batch=micro_batch,
            piece=piece,
        )
        total = sum(factor * objective.weighted(view) for objective, factor in members)
        view.meter("nll", -view.logprob)
        return total  # pyright: ignore[reportReturnType]

    return policy.head.sum(hidden, loss)


@dataclass
class SequenceView:
    """Sums over the targets of each of a micro-batch's R rows."""

    logprob: Tensor  # [R] Σ log p(target), differentiable
    count: Tensor  # [R] targets of each row
    streams: dict[str, Tensor]  # row streams [R]
    reference_logprob: dict[str, Tensor]  # reference → [R], from streams `logprobs:<reference>`
    update: Update

    @property
    def mean(self) -> Tensor:
        """Mean log p per target, [R]."""
        return self.logprob / self.count

    def log_ratio(self, reference: str = "initial") -> Tensor:
        """Σ (log p - log p of the reference), [R]."""
        return self.logprob - self.reference_logprob[reference]

    def index_select(self, rows: Tensor) -> SequenceView:
        """The view of the rows with these indices [k], in this order."""
        streams = {name: values[rows] for name, values in self.streams.items()}
        reference_logprob = {name: values[rows] for name, values in self.reference_logprob.items()}
        return SequenceView(self.logprob[rows], self.count[rows], streams, reference_logprob, self.update)


def sequence_view(policy: TokenPolicy, batch: Batch, update: Update) -> SequenceView:
    """Run one forward over a micro-batch and sum its log-probabilities by row."""
    rows, columns = batch.targets()
    targets, owner = batch.ids[rows, columns], batch.example_of[rows, columns]
    logprob = policy.head.map(policy.hidden(batch), lambda piece, logits: heads.target_logprob(logits, targets[piece]))

    def per_row(values: Tensor) -> Tensor:
        # By the index of each position's row, since packed layouts hold several rows of data in a row of the batch.
        return torch.zeros(len(batch.examples), dtype=values.dtype, device=values.device).index_add(0, owner, values)

    reference_logprob = {}
    for name, stream in batch.streams.items():
        kind, _, reference = name.partition(":")
        if kind == "logprobs":
            reference_logprob[reference] = per_row(stream.values[rows, columns].to(logprob.dtype))
    return SequenceView(
        logprob=per_row(logprob),
        count=per_row(torch.ones_like(logprob)),
        streams={name: stream.values for name, stream in batch.streams.items() if stream.axis == "row"},
        reference_logprob=reference_logprob,
        update=update,
    )


def missing_stream(name: str) -> RecipeError:
    """The error for an objective that reads a stream which the rows do not have."""
    return RecipeError(
        f"The objective reads `{name}`, which the rows of this step do not have.",
        "`advantages`, `old_logprobs`, `values` and `returns` come with answers that the model samples: an rl step.",
    )
