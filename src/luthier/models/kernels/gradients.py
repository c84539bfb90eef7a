"""Gradients of weights, added to those of earlier micro-batches within the product that makes them.

Autograd makes a new gradient of every weight for every micro-batch and adds it to the one that is there: for weights
that are large beside a micro-batch that takes a tenth of the time, and memory. Here the product adds to it at once,
and an embedding adds to the rows that were looked up instead of making a gradient of the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 2**16
"""Elements of a weight from which on adding within the product is worth a call in Python."""
BLOCK = 2**20
"""Elements of a product that is added to a sum of another type: more leave the processor's cache before they are."""


class GradientSums:
    """Gradients of narrow weights, summed in a wider type over the micro-batches of an update.

    Args:
        types: of each weight's sum.
    """

    def __init__(self, types: Mapping[Tensor, torch.dtype] | None = None):
        self._types = dict(types or {})
        self._sums: dict[Tensor, Tensor] = {}

    def __contains__(self, weight: Tensor) -> bool:
        return weight in self._types

    def get(self, weight: Tensor) -> Tensor | None:
        """The sum so far, or None."""
        return self._sums.get(weight)

    def start(self, weight: Tensor) -> Tensor:
        """The sum of a weight that has none, to be overwritten."""
        self._sums[weight] = torch.empty_like(weight, dtype=self._types[weight])
        return self._sums[weight]

    def add(self, weight: Tensor, gradient: Tensor) -> None:
        """Add a gradient in the weight's own type."""
        if weight in self._sums:
            self._sums[weight] += gradient
        else:
            self._sums[weight] = gradient.to(self._types[weight])

    def forget(self, weight: Tensor) -> None:
        """Free a weight's sum."""
        self._sums.pop(weight, None)


_SUMS: ContextVar[GradientSums | None] = ContextVar("sums", default=None)


@contextmanager
def adding(sums: GradientSums | None = None) -> Iterator[None]:
    """Around a backward whose gradients all go to `.grad`, or to these sums: what exists may be added to in place."""
    token = _SUMS.set(sums or GradientSums())
    try:
        yield
    finally:
        _SUMS.reset(token)


def may_add(weight: Tensor) -> bool:
    """Whether the backward in progress may add to what there is of a weight's gradient; else autograd must get it."""
    sums = _SUMS.get()
    if sums is None or not weight.is_leaf or weight._backward_hooks:
        return False
    watching = len(getattr(weight, "_post_accumulate_grad_hooks", None) or ())
    if weight in sums:
        return watching <= 1  # one hook is the sums' own
    return not watching and weight.grad is not None and not weight.grad.is_sparse


def sum_of(weight: Tensor) -> tuple[Tensor, bool]:
    """(the tensor to write to, whether it is fresh memory to be overwritten) of a weight that `may_add` allows."""
    sums = _SUMS.get()
    if sums is not None and weight in sums:
        found = sums.get(weight)
        return (sums.start(weight), True) if found is None else (found, False)
    assert weight.grad is not None
    return weight.grad, False


def add_product(weight: Tensor, slope: Tensor, x: Tensor, factor: float = 1.0) -> Tensor | None:
    """factor · slope^T x, slope [n,N] and x [n,K]; or None where it was added to the weight's gradient [N,K]."""
    if may_add(weight):
        whole, first = sum_of(weight)
        add_in_blocks(whole, slope, x, factor, first=first)
        return None
    product = slope.t() @ x
    return product if factor == 1.0 else product.mul_(factor)


def add_in_blocks(whole: Tensor, slope: Tensor, x: Tensor, factor: float = 1.0, *, first: bool = False) -> None:
    """Add factor · slope^T x to a sum [N,K], or overwrite it with that at `first`.

    A sum of another type gets it block by block, each block rounded to the product's type.
    """
    if whole.dtype == slope.dtype == x.dtype:
        whole.addmm_(slope.t(), x, alpha=factor, beta=0 if first else 1)
        return
    rows = max(1, BLOCK // x.shape[-1])
    for start in range(0, len(whole), rows):
        product, block = slope[:, start : start + rows].t() @ x, whole[start : start + rows]
        if first:
            block.copy_(product).mul_(factor)
        else:
            block.add_(product, alpha=factor)


def add(weight: Tensor, gradient: Tensor, factor: float) -> Tensor | None:
    """factor · gradient in the weight's type; or None where it was added to the weight's gradient.

    The gradient may be overwritten.
    """
    if not may_add(weight):
        return gradient.mul_(factor).to(weight.dtype)
    whole, first = sum_of(weight)
    if first:
        whole.copy_(gradient).mul_(factor)
    else:
        whole.add_(gradient, alpha=factor)
    return None


@contextmanager
def added_in_products(module: nn.Module) -> Iterator[None]:
    """Let the large linear layers and embeddings of a module add as above, in `adding`; on processors only.

    Layers of other types, and the output embedding (`Head` sees to it), stay what they are.
    """
    output = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None  # pyright: ignore
    chosen = [piece for piece in module.modules() if piece is not output and _suits(piece)]
    for piece in chosen:
        piece.__class__ = FORMS[type(piece)]
    try:
        yield
    finally:
        for piece in chosen:
            piece.__class__ = type(piece).__bases__[0]


def _suits(piece: Any) -> bool:
    if type(piece) not in FORMS:
        return False
    weight = piece.weight
    plain = isinstance(piece, nn.Linear) or not (piece.sparse or piece.scale_grad_by_freq or piece.max_norm)
    return plain and weight.requires_grad and weight.device.type == "cpu" and weight.numel() >= SMALLEST


class _AddingLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or input.dtype != self.weight.dtype or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        return _Product.apply(input, self.weight, self.bias)


class _AddingEmbedding(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(input)
        return _Lookup.apply(input, self.weight, self.padding_idx)


FORMS: dict[type, type] = {nn.Linear: _AddingLinear, nn.Embedding: _AddingEmbedding}


class _Product(torch.autograd.Function):
    """x [...,K], W [N,K], bias [N] or None → [...,N]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        slope = outer[0]
        to_x = slope @ weight if ctx.needs_input_grad[0] else None
        flat = slope.reshape(-1, slope.shape[-1])
        to_weight = add_product(weight, flat, x.reshape(-1, x.shape[-1])) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, flat.sum(0) if ctx.needs_input_grad[2] else None


class _Lookup(torch.autograd.Function):
    """ids [...], W [V,D] → [...,D]; the row of `padding` gets no gradient."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.padding = padding
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, Tensor | None, None]:
        ids, weight = ctx.saved_tensors
        ids, slope = ids.flatten(), outer[0].reshape(-1, weight.shape[-1])
        if ctx.padding is not None:
            slope = slope.masked_fill((ids == ctx.padding)[:, None], 0.0)
        if not may_add(weight):
            return None, torch.zeros_like(weight).index_add_(0, ids, slope), None
        whole, first = sum_of(weight)
        if first:
            whole.zero_()
        whole.index_add_(0, ids, slope.to(whole.dtype))
        return None, None, None
