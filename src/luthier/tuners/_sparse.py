"""A linear layer with a frozen weight and sparse trained differences; their optimisers, and how entries move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.models.context import ASIDE, context_value
from luthier.models.kernels.gradients import no_view
from luthier.tuners._layers import Replacement, layers_of

Candidates = Literal["update", "micro_batch"]


@dataclass
class Window:
    """Statistics of the dense gradient over some updates, from which new entries are chosen.

    Only the candidates' gradients are kept: a dense sum would take the memory of a full gradient per layer.

    Attributes:
        candidates: flat positions [K], None until they are chosen.
        first, second: sums over updates of the candidates' gradient and of its square, [K].
        updates: number of updates in these sums.
        dense: the gradient of the update in progress, if candidates are chosen from a whole update.
        pending: the candidates' gradient of the update in progress, [K].
    """

    candidates: Tensor | None = None
    first: Tensor | None = None
    second: Tensor | None = None
    updates: int = 0
    dense: Tensor | None = None
    pending: Tensor | None = None

    def add_gradient(self, gradient: Tensor, count: int, source: Candidates) -> None:
        """Add one micro-batch's dense gradient [out,in]; it is kept only in the update that chooses candidates."""
        flat = gradient.flatten()
        if self.candidates is None and source == "update":
            self.dense = flat if self.dense is None else self.dense.add_(flat)
            return
        if self.candidates is None:
            self.candidates = largest(flat.abs(), count)
        gradients = flat[self.candidates].to(torch.promote_types(flat.dtype, torch.float32))
        self.pending = gradients if self.pending is None else self.pending + gradients

    def close_update(self, count: int) -> None:
        """Add the finished update's gradient to the sums."""
        if self.dense is not None:
            self.candidates = largest(self.dense.abs(), count)
            self.pending = self.dense[self.candidates].to(torch.promote_types(self.dense.dtype, torch.float32))
            self.dense = None
        if self.pending is None:
            return
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(self.pending), torch.zeros_like(self.pending)
        self.first += self.pending
        self.second += self.pending.square()
        self.updates += 1
        self.pending = None

    def forget_update(self) -> None:
        """Drop the gradients of an update that ran out of memory and is repeated."""
        self.dense = self.pending = None
        if self.updates == 0:
            self.candidates = None


class SparseLinear(Replacement):
    """y = x (W + scatter(index, delta))ᵀ + b: W frozen, `delta` [k] trained, in fp32 or wider.

    The sum is computed for each product and not kept. The backward computes the dense gradient of W, reads its k
    entries (and those of an open `window`) and drops it; W never has a `.grad`.

    Args:
        linear: the layer to replace; its weight is shared, not copied.
        index: distinct flat positions row * in + column, [k].
        source: the gradient from which a window chooses candidates.
    """

    index: Tensor

    def __init__(self, linear: nn.Linear, index: Tensor, source: Candidates):
        super().__init__(linear)
        device, dtype = linear.weight.device, torch.promote_types(linear.weight.dtype, torch.float32)
        self.register_buffer("index", index.to(device), persistent=False)
        self.delta = nn.Parameter(torch.zeros(len(index), device=device, dtype=dtype))
        # The optimiser gets parameters alone, and SM3 needs the rows and columns of the layer's entries.
        self.delta.layer = self  # pyright: ignore[reportAttributeAccessIssue]
        self.source: Candidates = source
        self.window: Window | None = None
        self.enabled = True

    def effective(self) -> Tensor:
        """W + scatter(index, delta) in W's dtype; entries are summed in delta's dtype and rounded once."""
        weight = self.weight.detach().clone()
        flat = weight.view(-1)
        flat[self.index] = (flat[self.index].to(self.delta.dtype) + self.delta.detach()).to(weight.dtype)
        return weight

    def forward(self, input: Tensor) -> Tensor:
        if not self.enabled:
            return functional.linear(input, self.weight, self.bias)
        return _Product.apply(input, self.delta, self)

    def merged(self) -> nn.Linear:
        """An ordinary layer with the differences added."""
        return self.with_weight(nn.Parameter(self.effective(), requires_grad=False))


def sparse_layers(model: nn.Module) -> Iterator[tuple[str, SparseLinear]]:
    """All sparse layers of a model, by name."""
    return layers_of(model, SparseLinear)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor, layer: SparseLinear) -> Tensor:
        ctx.layer = layer
        # lfu's ascent step differentiates another loss; its gradient must not enter the window.
        ctx.trains = context_value(ASIDE) is None
        ctx.save_for_backward(x, delta)
        return no_view(functional.linear(x, layer.effective(), layer.bias))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (x, delta), layer, dy = ctx.saved_tensors, ctx.layer, grad_outputs[0]
        # W + delta is computed again: saving it would keep a copy of every layer's weight until the backward.
        dx = dy @ layer.effective() if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return dx, None, None
        gradient = dy.flatten(0, -2).T @ x.flatten(0, -2)
        if layer.window is not None and ctx.trains:
            layer.window.add_gradient(gradient, len(delta), layer.source)
        return dx, gradient.flatten()[layer.index].to(delta.dtype), None


def largest(scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` largest scores, largest first; of equal scores the lower position first.

    `topk` alone leaves the order of equal scores open, and the choice would depend on the device.
    """
    count = min(count, len(scores))
    if count == 0:
        return torch.zeros(0, dtype=torch.long, device=scores.device)
    least = scores.topk(count).values[-1]
    above = (scores > least).nonzero()[:, 0]
    equal = (scores == least).nonzero()[: count - len(above), 0]
    return torch.cat([above[scores[above].argsort(descending=True, stable=True)], equal])


@dataclass(frozen=True)
class Rule:
    """The optimiser of the differences: AdamW with an age per entry, or SM3."""

    kind: Literal["adamw", "sm3"]
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: float = 0.0

    def make(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        defaults = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "weight_decay": self.weight_decay}
        return (AgedAdamW if self.kind == "adamw" else SparseSM3)(parameters, defaults)


class AgedAdamW(torch.optim.Optimizer):
    """AdamW with one step count per entry: the bias correction of a later entry uses its own age."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    _aged_step(p, self.state[p], group)


def _aged_step(p: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """One step in place; `age` is the number of the step that each entry is about to take, 1 at first."""
    if not state:
        state |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p), "age": torch.ones_like(p)}
        state["betas"] = torch.tensor(group["betas"], dtype=torch.float64)  # `grow_accumulated` reads them
    (beta1, beta2), lr = group["betas"], group["lr"]
    mean, square, age, gradient = state["exp_avg"], state["exp_avg_sq"], state["age"], p.grad
    assert gradient is not None
    p.mul_(1 - lr * group["weight_decay"])
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    wide = age.double()  # at age 1, 1 - beta2 = 1 - 0.999 loses four digits in float32
    root = (square / (1 - beta2**wide)).sqrt().to(p.dtype) + group["eps"]
    p.sub_(lr * (mean / (1 - beta1**wide)).to(p.dtype) / root)
    age += 1


class SparseSM3(torch.optim.Optimizer):
    """SM3 (arXiv 1901.11150) over the active entries: one accumulator per row and per column of the matrix."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    _sm3_step(p, self.state[p], group)


def _sm3_step(p: Any, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    layer, gradient = p.layer, p.grad
    if not state:
        state |= {"row": p.new_zeros(layer.out_features), "column": p.new_zeros(layer.in_features)}
    rows, columns = layer.index // layer.in_features, layer.index % layer.in_features
    bound = torch.minimum(state["row"][rows], state["column"][columns]) + gradient.square()
    state["row"].scatter_reduce_(0, rows, bound, "amax")
    state["column"].scatter_reduce_(0, columns, bound, "amax")
    p.sub_(group["lr"] * gradient / (bound + group["eps"]).sqrt())
    p.mul_(1 - group["lr"] * group["weight_decay"])


@torch.no_grad()
def grow_accumulated(layer: SparseLinear, state: dict[str, Tensor], quantity: int) -> None:
    """Replace `quantity` entries: drop the smallest |delta|, grow the candidates with the largest accumulated gradient.

    A new entry gets the moments that AdamW would have after the window's a updates at the mean gradient:
    mean g (1 - beta1^a), mean g² (1 - beta2^a); its next step is number a + 1 (arXiv 2401.16405).
    """
    window = layer.window
    if window is None or window.candidates is None or window.first is None or window.second is None or not quantity:
        return
    dropped = torch.argsort(layer.delta.abs(), stable=True)[:quantity]
    remaining = torch.ones(len(layer.index), dtype=torch.bool, device=dropped.device)
    remaining[dropped] = False
    free = ~torch.isin(window.candidates, layer.index[remaining])
    grown = free.nonzero()[:, 0]
    grown = grown[largest(window.first[grown].abs(), quantity)]
    # An entry that is both dropped and grown keeps its delta, its moments and its age.
    kept = torch.isin(layer.index[dropped], window.candidates[grown])
    grown = grown[~torch.isin(window.candidates[grown], layer.index[dropped])]
    # Candidates may be fewer than dropped entries; the surplus entries stay, so the number of entries is constant.
    dropped = dropped[~kept][: len(grown)]
    grown = grown[: len(dropped)]
    age = window.updates
    beta1, beta2 = state["betas"].tolist()
    layer.index[dropped] = window.candidates[grown]
    layer.delta[dropped] = 0.0
    state["exp_avg"][dropped] = (window.first[grown] / age * (1 - beta1**age)).to(layer.delta.dtype)
    state["exp_avg_sq"][dropped] = (window.second[grown] / age * (1 - beta2**age)).to(layer.delta.dtype)
    state["age"][dropped] = float(age + 1)


@torch.no_grad()
def grow_momentum(layer: SparseLinear, state: dict[str, Tensor], quantity: int) -> None:
    """Replace `quantity` entries: drop the smallest |delta|, grow the inactive positions with the largest score.

    The score of a position is SM3's accumulator of its row times that of its column (arXiv 2401.16405).
    """
    quantity = min(quantity, layer.weight.numel() - len(layer.index))
    if not quantity:
        return
    scores = torch.outer(state["row"], state["column"]).flatten()
    scores[layer.index] = -1.0  # below every accumulator: active positions are not candidates
    dropped = torch.argsort(layer.delta.abs(), stable=True)[:quantity]
    layer.index[dropped] = largest(scores, quantity)
    layer.delta[dropped] = 0.0
