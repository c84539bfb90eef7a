"""A linear layer of which some rows or columns are trained, inside its own weight."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.tuners._layers import Replacement, layers_of


class SliceLinear(Replacement):
    """y = W x + b, where W[:, index] (`dim` 1) or W[index, :] (`dim` 0) is the parameter `slice` and the rest frozen.

    The values of `slice` are written into W before each product, so there is one product, as without it. The
    backward makes the gradient of the slice alone, and for columns keeps only x[..., index].

    Args:
        plain: the layer that it takes the place of; its weight is shared, not copied.
        index: the trained rows or columns as the weight is stored, [k].
        origin: the same rows or columns in the untouched model (differs where units were permuted).
    """

    def __init__(self, plain: nn.Linear, index: Tensor, dim: int, origin: Tensor):
        super().__init__(plain)
        self.dim = dim
        index = index.to(plain.weight.device)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("origin", origin.to(index.device), persistent=False)
        start = plain.weight.detach().index_select(dim, index)
        self.register_buffer("start", start, persistent=False)
        self.slice = nn.Parameter(start.clone())
        self.on = True

    index: Tensor
    origin: Tensor
    start: Tensor

    def write(self) -> None:
        """Bring the weight up to date.

        Through `.data`: a backward in between sees the values that its forward saw, since only the optimiser
        changes the slice and `switch(False)` is always undone, but autograd could not know.
        """
        self.weight.data.index_copy_(self.dim, self.index, (self.slice if self.on else self.start).data)

    def switch(self, on: bool) -> None:
        """Trained values, or those from before."""
        self.on = on
        self.write()

    def forward(self, input: Tensor) -> Tensor:
        self.write()
        return _Product.apply(input, self.slice, self.weight, self.bias, _place(self.index), self.dim)

    def plain(self) -> nn.Linear:
        """An ordinary layer with the weight as it was last written."""
        return self.plain_with(self.weight)


def slices_of(model: nn.Module) -> Iterator[tuple[str, SliceLinear]]:
    """All slice layers of a model by name."""
    return layers_of(model, SliceLinear)


def _place(index: Tensor) -> Tensor | slice:
    """A range where the places are one: it is read without a gather."""
    if index.is_meta or not len(index) or not bool((index.diff() == 1).all()):
        return index
    return slice(int(index[0]), int(index[-1]) + 1)


def _taken(values: Tensor, place: Tensor | slice) -> Tensor:
    """A contiguous copy of some places of the last axis; a view would keep all of `values` alive."""
    if isinstance(place, slice):
        return values[..., place].clone(memory_format=torch.contiguous_format)
    return values.index_select(-1, place)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, part: Tensor, weight: Tensor, bias: Tensor | None, place: Tensor | slice, dim: int
    ) -> Tensor:
        kept = None
        if ctx.needs_input_grad[1]:
            kept = _taken(x, place) if dim == 1 else x
        ctx.save_for_backward(weight, kept)
        ctx.place, ctx.dim = place, dim
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        weight, kept = ctx.saved_tensors
        dy = outer[0]
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        gradient = None
        if kept is not None:
            rows = dy if ctx.dim == 1 else _taken(dy, ctx.place)
            gradient = rows.flatten(0, -2).T @ kept.flatten(0, -2)
        return dx, gradient, None, None, None, None
