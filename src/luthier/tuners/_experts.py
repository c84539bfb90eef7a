"""A frozen linear layer with low-rank experts, mixed per token; and the use of each expert, which is balanced."""

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
"""Key of the forward context under which the layers find the `Usage` to write to; absent: they record nothing."""

Form = Literal["squared_mean", "mean"]


class ExpertLinear(Replacement):
    """y = W x + b + scale · Σ_i g_i B_i A_i dropout(x), g = softmax(R x) over the experts; W and b are frozen.

    All experts run for every token: as one product with `down` (all A_i below one another, [N r, in]) and one with
    `up` (all B_i side by side, [out, N r]). The softmax is in float32 or wider.

    Args:
        linear: the layer to replace; its weight is shared, not copied.
        generator: draws `down` and `router` uniformly within ±1/√in; `up` is zero, so nothing changes at first.
    """

    def __init__(
        self, linear: nn.Linear, experts: int, r: int, scale: float, dropout: float, generator: torch.Generator
    ):
        super().__init__(linear)
        self.experts, self.scale, self.dropout = experts, scale, dropout
        self.down = nn.Parameter(_uniform_rows(experts * r, linear, generator))
        self.up = nn.Parameter(linear.weight.new_zeros(linear.out_features, experts * r))
        self.router = nn.Parameter(_uniform_rows(experts, linear, generator))
        self.enabled = True

    def shares(self, input: Tensor) -> Tensor:
        """Routing weights g of every token: [..., in] → [..., N], in float32 or wider."""
        logits = functional.linear(input, self.router)
        return torch.softmax(logits, -1, dtype=torch.promote_types(logits.dtype, torch.float32))

    def forward(self, input: Tensor) -> Tensor:
        base = functional.linear(input, self.weight, self.bias)
        if not self.enabled:
            return base
        shares = self.shares(input)
        # Forwards without gradient (references, scores) are not the training forward whose use is balanced.
        usage: Usage | None = context_value(USAGE)
        if usage is not None and torch.is_grad_enabled():
            usage.add(self, shares)
        low = functional.linear(functional.dropout(input, self.dropout, self.training), self.down)
        # Scaling the low-rank activations by g mixes all experts in one product with `up`, not one per expert.
        mixed = low.unflatten(-1, (self.experts, -1)) * shares.to(low.dtype)[..., None]
        return base + self.scale * functional.linear(mixed.flatten(-2), self.up)


class Usage:
    """Q [R,N] of every layer: the sum of g over the tokens of each row, without padding.

    The first forward with gradient counts. Gradient checkpointing runs it again; the second Q is computed all the
    same and dropped, since a recomputation must save the same tensors as its forward.
    """

    def __init__(self, batch: Batch):
        rows = len(batch.examples)
        # [B·T,R] indicator of each token's row; padding has example -1, the column 0 that is cut off.
        self.membership = functional.one_hot(batch.example_of.flatten() + 1, rows + 1)[:, 1:]
        self.by_layer: dict[ExpertLinear, Tensor] = {}

    def add(self, layer: ExpertLinear, shares: Tensor) -> None:
        """Record the routing weights of a forward over this batch; forwards over another batch are ignored."""
        flat = shares.flatten(0, -2)
        if len(flat) == len(self.membership):
            self.by_layer.setdefault(layer, self.membership.to(flat.dtype).T @ flat)


def imbalance(z: Tensor, form: Form = "squared_mean") -> Tensor:
    """Var(Z) / Mean(Z)², or Var(Z) / Mean(Z), over the last axis; Var is the unbiased variance (divisor N - 1)."""
    variance, mean = z.var(-1), z.mean(-1)
    return variance / (mean.square() + 1e-10 if form == "squared_mean" else mean)


def expectations(types: Tensor, experts: int, delta: float) -> Tensor:
    """I [R,N]: 1 - delta for experts of the row's type, else 1 + delta; type 0 has the first half, 1 the second."""
    group = torch.arange(experts, device=types.device) * 2 // experts
    own = (types[:, None] > 0.5) == (group > 0)
    return 1.0 + delta * (1.0 - 2.0 * own.double())


def experts_of(model: nn.Module) -> Iterator[tuple[str, ExpertLinear]]:
    """All layers with experts, by name."""
    return layers_of(model, ExpertLinear)


def _uniform_rows(rows: int, linear: nn.Linear, generator: torch.Generator) -> Tensor:
    """Numbers [rows,in] within ±1/√in, drawn on the CPU in float64: the same for every device and dtype."""
    draws = torch.rand(rows, linear.in_features, generator=generator, dtype=torch.float64)
    return ((2 * draws - 1) / linear.in_features**0.5).to(linear.weight.device, linear.weight.dtype)
