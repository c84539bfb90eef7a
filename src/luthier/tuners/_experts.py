"""A frozen linear layer with low-rank experts, mixed token by token; and how much each expert was used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.models.context import context_value
from luthier.tuners._layers import Replacement, layers_of
from luthier.types import Batch

USAGE = "expert_usage"
"""Under this name the context of a forward holds a `Usage`, or nothing."""

Form = Literal["squared_mean", "mean"]


class ExpertLinear(Replacement):
    """y = W x + b + scale · Σ_i g_i B_i A_i dropout(x), g = softmax(R x) over the experts; W and b are frozen.

    All experts run for every token: as one product with `down` (all A_i below one another, [N r, in]) and one with
    `up` (all B_i side by side, [out, N r]). The softmax is in float32 or wider.

    Args:
        plain: the layer that it takes the place of; its weight is shared, not copied.
        generator: draws `down` and `router` uniformly within ±1/√in; `up` is zero, so nothing changes at first.
    """

    def __init__(
        self, plain: nn.Linear, experts: int, r: int, scale: float, dropout: float, generator: torch.Generator
    ):
        super().__init__(plain)
        self.experts, self.scale, self.dropout = experts, scale, dropout
        self.down = nn.Parameter(_drawn(experts * r, plain, generator))
        self.up = nn.Parameter(plain.weight.new_zeros(plain.out_features, experts * r))
        self.router = nn.Parameter(_drawn(experts, plain, generator))
        self.on = True

    def shares(self, input: Tensor) -> Tensor:
        """g of every token: [..., in] → [..., N], in float32 or wider."""
        logits = functional.linear(input, self.router)
        return torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def forward(self, input: Tensor) -> Tensor:
        plain = functional.linear(input, self.weight, self.bias)
        if not self.on:
            return plain
        shares = self.shares(input)
        usage: Usage | None = context_value(USAGE)
        if usage is not None and torch.is_grad_enabled():
            usage.add(self, shares)
        low = functional.linear(functional.dropout(input, self.dropout, self.training), self.down)
        mixed = low.unflatten(-1, (self.experts, -1)) * shares.to(low.dtype)[..., None]
        return plain + self.scale * functional.linear(mixed.flatten(-2), self.up)


class Usage:
    """Q [R,N] of every layer: the sum of g over the tokens of each row; padding belongs to no row.

    The first forward with gradient counts. What checkpointing computes again is the same and falls away, but is
    computed, since a recomputation has to save what the forward saved.
    """

    def __init__(self, batch: Batch):
        rows = len(batch.examples)
        self.member = functional.one_hot(batch.example_of.flatten() + 1, rows + 1)[:, 1:]
        self.found: dict[ExpertLinear, Tensor] = {}

    def add(self, layer: ExpertLinear, shares: Tensor) -> None:
        """Note the shares of a forward over this batch; one over anything else is passed by."""
        flat = shares.flatten(0, -2)
        if len(flat) == len(self.member):
            self.found.setdefault(layer, self.member.to(flat.dtype).T @ flat)


def imbalance(z: Tensor, form: Form = "squared_mean") -> Tensor:
    """Var(Z) / Mean(Z)², or Var(Z) / Mean(Z), over the last axis; Var divides by one less than the number."""
    variance, mean = z.var(-1), z.mean(-1)
    return variance / (mean.square() + 1e-10 if form == "squared_mean" else mean)


def expectations(types: Tensor, experts: int, delta: float) -> Tensor:
    """I [R,N]: 1 - delta where the expert is at home with the row's type (0: the first half), else 1 + delta."""
    group = torch.arange(experts, device=types.device) * 2 // experts
    home = (types[:, None] > 0.5) == (group > 0)
    return 1.0 + delta * (1.0 - 2.0 * home.double())


def experts_of(model: nn.Module) -> Iterator[tuple[str, ExpertLinear]]:
    """All layers with experts by name."""
    return layers_of(model, ExpertLinear)


def _drawn(rows: int, plain: nn.Linear, generator: torch.Generator) -> Tensor:
    draws = torch.rand(rows, plain.in_features, generator=generator, dtype=torch.float64)
    return ((2 * draws - 1) / plain.in_features**0.5).to(plain.weight.device, plain.weight.dtype)
