"""What a token's loss sees: a chunk of target positions, and on demand the whole micro-batch around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from luthier.errors import RecipeError
from luthier.objectives._draws import keyed_uniform
from luthier.parts import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.models.kernels import head as heads
    from luthier.objectives.base import Update
else:
    torch = lazy("torch")
    heads = lazy("luthier.models.kernels.head")


@dataclass
class MicroBatchTargets:
    """All N targets of a micro-batch, without gradient: for a loss that must know a token's whole record."""

    head: heads.Head
    hidden: Tensor  # [N,D]
    targets: Tensor  # [N]
    owner: Tensor  # [N] index of each position's record
    streams: dict[str, Tensor]  # token streams [N]
    counts: Tensor  # [R] targets of each record

    @cached_property
    def logprob(self) -> Tensor:
        """log p(target) under the trained model, [N], from a pass of the head of its own."""
        with torch.no_grad():
            return self.head.map(self.hidden, lambda piece, z: heads.target_logprob(z, self.targets[piece]))

    def mean(self, values: Tensor) -> Tensor:
        """Mean of values [N] over each position's record, [N]."""
        sums = torch.zeros(len(self.counts), dtype=values.dtype, device=values.device)
        return (sums.index_add(0, self.owner, values) / self.counts)[self.owner]


@dataclass
class TokenView:
    """One chunk of n target positions. All tensors are detached from nothing: losses differentiate `logits`."""

    logits: Tensor  # [n,V], fp32 or wider; overwritten afterwards: what is kept of them must be cloned
    targets: Tensor  # [n]
    streams: dict[str, Tensor]  # token streams at the chunk's positions, [n]
    hidden_of: dict[str, Any]  # reference name → (reference, hidden [n,D])
    keys: Tensor  # [n] int64: hash of (record, position), for keyed draws
    record_targets: Tensor  # [n] targets of the record that each position belongs to
    update: Update
    whole: MicroBatchTargets | None = None
    piece: slice = field(default_factory=lambda: slice(None))  # where the chunk stands in `whole`

    @cached_property
    def logprob(self) -> Tensor:
        """log p(target) under the trained model, [n], differentiable."""
        return heads.target_logprob(self.logits, self.targets)

    @property
    def weights(self) -> Tensor:
        return self.streams["weights"]

    def stream(self, name: str) -> Tensor:
        """A token stream at the chunk's positions, [n].

        Raises:
            RecipeError: the rows do not carry it.
        """
        if name not in self.streams:
            raise missing_stream(name)
        return self.streams[name]

    def record_mean(self, values: Callable[[MicroBatchTargets], Tensor]) -> Tensor:
        """Mean over each position's record, [n], of per-token values [N]; no gradient."""
        assert self.whole is not None
        return self.whole.mean(values(self.whole).detach())[self.piece]

    def logits_of(self, reference: str) -> Tensor:
        """Logits [n,V] of a reference named in READS as `logits:<reference>`; no gradient."""
        handle, hidden = self.hidden_of[reference]
        return handle.logits(hidden)

    def uniform(self, draws: int) -> Tensor:
        """Uniform numbers [n,draws] in [0,1), a function of (seed, update, record, position, draw) alone."""
        return keyed_uniform(self.keys, self.update, draws)

    def meter(self, name: str, values: Tensor, unit: str = "targets") -> None:
        """Report the mean of per-token values [n] over the update."""
        self.update.meter(name, values.detach().sum(), unit)


def missing_stream(name: str) -> RecipeError:
    """An objective reads a stream that the rows do not carry."""
    return RecipeError(
        f"The objective reads `{name}`, which this step's rows do not carry.",
        "`advantages`, `old_logprobs`, `values` and `returns` come with answers that the model samples: an rl step.",
    )
