"""Gradients of weights, added to those of earlier micro-batches within the product that makes them.

Autograd makes a new gradient of every weight for every micro-batch and adds it to the one that is there: for weights
that are large beside a micro-batch that takes a tenth of the time, and memory. Here the product adds to it at once,
and an embedding adds to the rows that were looked up instead of making a gradient of the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 2**16
"""Elements of a weight from which on adding within the product is worth a call in Python."""
_ADDING: ContextVar[bool] = ContextVar("adding", default=False)


@contextmanager
def adding() -> Iterator[None]:
    """Around a backward whose gradients all go to `.grad`: those that exist may be added to in place."""
    token = _ADDING.set(True)
    try:
        yield
    finally:
        _ADDING.reset(token)


def adds_to(weight: Tensor, gradient: Tensor) -> bool:
    """Whether the backward in progress may add a gradient of this type to `weight.grad` itself."""
    kept = weight.grad if _ADDING.get() and weight.is_leaf else None
    watched = weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None)
    return kept is not None and kept.dtype == gradient.dtype and not kept.is_sparse and not watched


def add_product(weight: Tensor, slope: Tensor, x: Tensor, factor: float = 1.0) -> Tensor | None:
    """factor · slope^T x, slope [n,N] and x [n,K]; or None where it was added to the weight's gradient [N,K]."""
    if adds_to(weight, slope):
        weight.grad.addmm_(slope.t(), x, alpha=factor)  # pyright: ignore[reportOptionalMemberAccess]
        return None
    product = slope.t() @ x
    return product if factor == 1.0 else product.mul_(factor)


def add(weight: Tensor, gradient: Tensor, factor: float) -> Tensor | None:
    """factor · gradient, overwritten, in the weight's type; or None where it was added to the weight's gradient."""
    if adds_to(weight, gradient):
        weight.grad.add_(gradient, alpha=factor)  # pyright: ignore[reportOptionalMemberAccess]
        return None
    return gradient.mul_(factor).to(weight.dtype)


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
        if not adds_to(weight, slope):
            return None, torch.zeros_like(weight).index_add(0, ids, slope), None
        weight.grad.index_add_(0, ids, slope)
        return None, None, None
