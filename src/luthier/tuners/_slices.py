"""A linear layer in which a subset of the weight's rows or columns is trained in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.models.kernels.gradients import no_view
from luthier.tuners._layers import Replacement, layers_of


class SliceLinear(Replacement):
    """y = W x + b, where W[:, index] (`dim` 1) or W[index, :] (`dim` 0) is the parameter `slice` and the rest frozen.

    The values of `slice` are written into W before each product, so a forward costs one product, as in the base
    model. The backward computes the gradient of the slice alone, and for columns saves only x[..., index].

    Args:
        linear: the layer to replace; its weight is shared, not copied.
        index: the trained rows or columns as the weight is stored, [k].
        dim: 0 rows, 1 columns.
        origin: the same rows or columns in the untouched model (differs where units were permuted), [k].
    """

    def __init__(self, linear: nn.Linear, index: Tensor, dim: int, origin: Tensor):
        super().__init__(linear)
        self.dim = dim
        index = index.to(linear.weight.device)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("origin", origin.to(index.device), persistent=False)
        # A copy, for `switch(False)`: subtracting what training added would not restore the base bit for bit.
        start = linear.weight.detach().index_select(dim, index)
        self.register_buffer("start", start, persistent=False)
        self.slice = nn.Parameter(start.clone())
        self.enabled = True

    index: Tensor
    origin: Tensor
    start: Tensor

    def write(self) -> None:
        """Copy the slice into the weight.

        Through `.data`, which autograd does not track: it would refuse the backward of a forward before the copy.
        That backward is correct, since only the optimiser changes the slice and `switch(False)` is always undone.
        """
        self.weight.data.index_copy_(self.dim, self.index, (self.slice if self.enabled else self.start).data)

    def switch(self, enabled: bool) -> None:
        """Put the trained values into the weight, or those from before training."""
        self.enabled = enabled
        self.write()

    def forward(self, input: Tensor) -> Tensor:
        self.write()
        return _Product.apply(input, self.slice, self.weight, self.bias, _as_range(self.index), self.dim)

    def merged(self) -> nn.Linear:
        """An ordinary layer with the weight as it was last written."""
        return self.with_weight(self.weight)


def slices_of(model: nn.Module) -> Iterator[tuple[str, SliceLinear]]:
    """All slice layers of a model, by name."""
    return layers_of(model, SliceLinear)


def _as_range(index: Tensor) -> Tensor | slice:
    """A slice where the indices are contiguous, which is read without a gather; else the index itself."""
    if index.is_meta or not len(index) or not bool((index.diff() == 1).all()):
        return index
    return slice(int(index[0]), int(index[-1]) + 1)


def _select_last(values: Tensor, index: Tensor | slice) -> Tensor:
    """A contiguous copy of some entries of the last axis; a view would keep all of `values` alive."""
    if isinstance(index, slice):
        return values[..., index].clone(memory_format=torch.contiguous_format)
    return values.index_select(-1, index)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, slice_: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor | slice, dim: int
    ) -> Tensor:
        saved = None
        if ctx.needs_input_grad[1]:
            saved = _select_last(x, index) if dim == 1 else x
        ctx.save_for_backward(weight, saved)
        ctx.index, ctx.dim = index, dim
        return no_view(functional.linear(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        weight, saved = ctx.saved_tensors
        dy = grad_outputs[0]
        dx = dy @ weight if ctx.needs_input_grad[0] else None
        grad_slice = None
        if saved is not None:
            # A product of the slice's own size; the dense gradient [out,in] never exists.
            rows = dy if ctx.dim == 1 else _select_last(dy, ctx.index)
            grad_slice = rows.flatten(0, -2).T @ saved.flatten(0, -2)
        return dx, grad_slice, None, None, None, None
