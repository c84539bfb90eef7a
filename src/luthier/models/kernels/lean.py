"""Norms and gated layers that keep their inputs for the backward, and nothing of what lies between.

Transformers writes both as a row of products value by value, of which autograd keeps every factor. These compute the
same forward, bit for bit, and make the factors again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def kept_lean(module: nn.Module) -> Iterator[None]:
    """Let the norms and gated layers of a module keep less; on processors only, and in float32 or narrower.

    Transformers' norms compute in float32, so in float64 their gradients would differ from autograd's by its digits.
    """
    chosen = [(piece, form) for piece in module.modules() if (form := form_of(type(piece))) and _suits(piece)]
    for piece, form in chosen:
        piece.__class__ = form
    try:
        yield
    finally:
        for piece, form in chosen:
            piece.__class__ = form.__bases__[-1]


def _suits(piece: nn.Module) -> bool:
    return all(p.device.type == "cpu" and p.dtype != torch.float64 for p in piece.parameters())


@cache
def form_of(kind: type) -> type | None:
    """The lean form of a class of modules, or None where a made-up instance does not answer as it would."""
    for form, members in ((_Norm, _members_of_norm), (_Gated, _members_of_gated)):
        if kind.__name__.endswith(form.ENDS) and _answers_alike(kind, form, members):
            return type(f"Lean{kind.__name__}", (form, kind), {})
    return None


def _answers_alike(kind: Any, form: Any, members: Any) -> bool:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        piece: Any = kind.__new__(kind)
        nn.Module.__init__(piece)
        for name, member in members().items():
            setattr(piece, name, member)
        x = torch.randn(3, 8)
    try:
        return torch.equal(kind.forward(piece, x), form.forward(piece, x))
    except (AttributeError, TypeError, RuntimeError):
        return False


def _members_of_norm() -> dict[str, Any]:
    return {"weight": nn.Parameter(torch.randn(8)), "variance_epsilon": 0.01}


def _members_of_gated() -> dict[str, Any]:
    widths = {"gate_proj": (8, 6), "up_proj": (8, 6), "down_proj": (6, 8)}
    return {**{name: nn.Linear(*shape) for name, shape in widths.items()}, "act_fn": nn.SiLU()}


class _Norm(nn.Module):
    """x / sqrt(mean(x²) + ε), in float32, times a weight."""

    ENDS = "RMSNorm"

    def forward(self: Any, x: Tensor) -> Tensor:
        return _RootMeanSquare.apply(x, self.weight, self.variance_epsilon)


class _Gated(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    ENDS = "MLP"

    def forward(self: Any, x: Tensor) -> Tensor:
        if type(self.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
            return super().forward(x)
        return self.down_proj(_SiluTimes.apply(self.gate_proj(x), self.up_proj(x)))


class _RootMeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.to(torch.float32)
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, inverse)
        ctx.epsilon = epsilon
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():  # a derivative of this one is asked for
            wide = x.to(torch.float32)
            inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + ctx.epsilon)
        straight = x.to(torch.float32) * inverse
        to_weight = (outer[0] * straight.to(x.dtype)).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_weight, None
        slope = (outer[0] * weight).to(torch.float32)
        along = (slope * straight).mean(-1, keepdim=True)
        if torch.is_grad_enabled():
            return ((slope - straight * along) * inverse).to(x.dtype), to_weight, None
        # No fused multiply and add: its vectors round otherwise than the rest of a row, and so would other splits.
        return slope.sub_(straight.mul_(along)).mul_(inverse).to(x.dtype), to_weight, None


class _SiluTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        to_up = outer[0] * nn.functional.silu(gate) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, to_up
        if not torch.is_grad_enabled():
            return torch.ops.aten.silu_backward(outer[0] * up, gate), to_up
        share = torch.sigmoid(gate)
        return outer[0] * up * share * (1 + gate * (1 - share)), to_up
