"""Gradients of weights, added to those of earlier micro-batches within the product that computes them.

Autograd allocates a new gradient of every weight for every micro-batch and adds it to `.grad`: for weights that are
large compared with a micro-batch this takes a tenth of the time, and memory. Here the product adds to `.grad` directly,
and an embedding adds to the rows that were looked up, without a gradient of the whole vocabulary.
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
"""Elements of a product that is added to a sum of another type: larger products leave the processor's cache first."""


class GradientSums:
    """Gradients of narrow weights, summed in a wider type over the micro-batches of an update.

    Args:
        types: weight → type of its sum.
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
        """New memory for the sum of a weight that has none; the caller overwrites it."""
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
def accumulating_in_place(sums: GradientSums | None = None) -> Iterator[None]:
    """Allow the backward inside to add to existing gradients in place: all of them go to `.grad` or to `sums`.

    Outside, autograd must get every gradient: `torch.autograd.grad` returns gradients and must not change `.grad`.
    """
    token = _SUMS.set(sums or GradientSums())
    try:
        yield
    finally:
        _SUMS.reset(token)


def may_add(weight: Tensor) -> bool:
    """Whether the backward in progress may add to the weight's gradient in place; else autograd must get it."""
    sums = _SUMS.get()
    # Hooks of a tensor want to see its gradient, and that of a computed weight flows further back.
    if sums is None or not weight.is_leaf or weight._backward_hooks:
        return False
    hooks = len(getattr(weight, "_post_accumulate_grad_hooks", None) or ())
    if weight in sums:
        return hooks <= 1  # one hook is that of MasterWeights, which fills the sums
    return not hooks and weight.grad is not None and not weight.grad.is_sparse


def sum_of(weight: Tensor) -> tuple[Tensor, bool]:
    """(tensor to add to, whether it is new memory to overwrite instead) for a weight that `may_add` allows."""
    sums = _SUMS.get()
    if sums is not None and weight in sums:
        total = sums.get(weight)
        return (sums.start(weight), True) if total is None else (total, False)
    assert weight.grad is not None
    return weight.grad, False


def add_product(weight: Tensor, grad_out: Tensor, x: Tensor, factor: float = 1.0) -> Tensor | None:
    """factor · grad_out^T x, of [n,N] and [n,K]; or None where it was added to the weight's gradient [N,K]."""
    if may_add(weight):
        total, fresh = sum_of(weight)
        add_in_blocks(total, grad_out, x, factor, overwrite=fresh)
        return None
    product = grad_out.t() @ x
    return product if factor == 1.0 else product.mul_(factor)


def add_in_blocks(total: Tensor, grad_out: Tensor, x: Tensor, factor: float = 1.0, *, overwrite: bool = False) -> None:
    """Add factor · grad_out^T x, of [n,N] and [n,K], to a sum [N,K], or overwrite the sum with it."""
    if total.dtype == grad_out.dtype == x.dtype:
        # beta=0 ignores what the memory holds, NaN included.
        total.addmm_(grad_out.t(), x, alpha=factor, beta=0 if overwrite else 1)
        return
    # No product writes into another type: block by block, each block rounded to the product's type.
    rows = max(1, BLOCK // x.shape[-1])
    for start in range(0, len(total), rows):
        product, block = grad_out[:, start : start + rows].t() @ x, total[start : start + rows]
        if overwrite:
            block.copy_(product).mul_(factor)
        else:
            block.add_(product, alpha=factor)


def add(weight: Tensor, gradient: Tensor, factor: float) -> Tensor | None:
    """factor · gradient in the weight's type; or None where it was added to the weight's gradient.

    `gradient` may be overwritten.
    """
    if not may_add(weight):
        return gradient.mul_(factor).to(weight.dtype)
    total, fresh = sum_of(weight)
    if fresh:
        total.copy_(gradient).mul_(factor)
    else:
        total.add_(gradient, alpha=factor)
    return None


@contextmanager
def added_in_products(module: nn.Module) -> Iterator[None]:
    """Let large linear layers and embeddings add within the product, in `accumulating_in_place`; on processors only.

    Subclasses of these layers keep their own forward. So does the output embedding, whose gradient `Head` adds.
    """
    output = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None  # pyright: ignore
    chosen = [layer for layer in module.modules() if layer is not output and _adds(layer)]
    # Swapping the class keeps parameters, hooks and names, and leaves no wrapper in the module tree.
    for layer in chosen:
        layer.__class__ = FORMS[type(layer)]
    try:
        yield
    finally:
        for layer in chosen:
            layer.__class__ = type(layer).__bases__[0]


def _adds(layer: Any) -> bool:
    """Whether a layer is large, trained and computes nothing besides product or look-up."""
    if type(layer) not in FORMS:
        return False
    weight = layer.weight
    known = isinstance(layer, nn.Linear) or not (layer.sparse or layer.scale_grad_by_freq or layer.max_norm)
    return known and weight.requires_grad and weight.device.type == "cpu" and weight.numel() >= SMALLEST


class _AddingLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        # Under autocast the product has another type than the weight: autograd casts, `_Product` would not.
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
        return no_view(nn.functional.linear(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, *grads_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_out = grads_out[0]
        grad_x = grad_out @ weight if ctx.needs_input_grad[0] else None
        flat = grad_out.reshape(-1, grad_out.shape[-1])
        grad_weight = add_product(weight, flat, x.reshape(-1, x.shape[-1])) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, flat.sum(0) if ctx.needs_input_grad[2] else None


def no_view(product: Tensor) -> Tensor:
    """The same memory as a tensor of its own: autograd refuses to change a view of a function's output in place."""
    return product.new_empty(0).set_(product) if product._is_view() else product  # pyright: ignore[reportArgumentType]


class _Lookup(torch.autograd.Function):
    """ids [...], W [V,D] → [...,D]; the row of `padding` gets no gradient."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.padding = padding
        return nn.functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *grads_out: Tensor) -> tuple[None, Tensor | None, None]:
        ids, weight = ctx.saved_tensors
        ids, grad_out = ids.flatten(), grads_out[0].reshape(-1, weight.shape[-1])
        if ctx.padding is not None:
            grad_out = grad_out.masked_fill((ids == ctx.padding)[:, None], 0.0)
        if not may_add(weight):
            return None, torch.zeros_like(weight).index_add_(0, ids, grad_out), None
        total, fresh = sum_of(weight)
        if fresh:
            total.zero_()  # unlike a product, a look-up writes some rows only
        total.index_add_(0, ids, grad_out.to(total.dtype))
        return None, None, None
