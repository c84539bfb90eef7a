"""RMSNorm and gated MLPs that compute their intermediates again in the backward: the same bits, less memory.

Transformers writes both as a chain of elementwise products, of which autograd keeps every factor. These forms compute
the same forward, bit for bit, keep its inputs, and compute the factors again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def recompute_intermediates(module: nn.Module) -> Iterator[None]:
    """Let the norms and gated MLPs of a module keep their inputs only; on processors, in float32 or narrower.

    Transformers' norms compute in float32, so in float64 their gradients would differ from autograd's by its digits.
    """
    chosen = []
    for layer in module.modules():
        form = form_of(type(layer))
        if form is not None and _can_be_lean(layer):
            chosen.append((layer, form))
    # Swapping the class keeps parameters, hooks and names, and leaves no wrapper in the module tree.
    for layer, form in chosen:
        layer.__class__ = form
    try:
        yield
    finally:
        for layer, form in chosen:
            layer.__class__ = form.__bases__[-1]


def _can_be_lean(layer: nn.Module) -> bool:
    return all(p.device.type == "cpu" and p.dtype != torch.float64 for p in layer.parameters())


@cache
def form_of(kind: type) -> type | None:
    """The lean form of a class of modules; None for a class whose forward it does not equal.

    A class's name only suggests its formula (`GemmaRMSNorm` multiplies by 1 + weight), so both forwards are run on a
    small instance, and their outputs compared bit for bit.
    """
    for form, members in ((_Norm, _members_of_norm), (_Gated, _members_of_gated)):
        if kind.__name__.endswith(form.ENDS) and _same_output(kind, form, members):
            return type(f"Lean{kind.__name__}", (form, kind), {})
    return None


def _same_output(kind: Any, form: Any, members: Any) -> bool:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Without the class's own constructor, whose arguments differ from model to model.
        layer: Any = kind.__new__(kind)
        nn.Module.__init__(layer)
        for name, member in members().items():
            setattr(layer, name, member)
        x = torch.randn(3, 8)
    try:
        return torch.equal(kind.forward(layer, x), form.forward(layer, x))
    except (AttributeError, TypeError, RuntimeError):
        return False  # its forward needs members that these forms do not know


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
        # The activation is the instance's choice, not the class's: `form_of` has tried SiLU only.
        if type(self.act_fn).__name__ not in ("SiLU", "SiLUActivation"):
            return super().forward(x)
        return self.down_proj(_SiluTimes.apply(self.gate_proj(x), self.up_proj(x)))


class _RootMeanSquare(torch.autograd.Function):
    """x [...,D], weight [D] → x · rsqrt(mean(x²) + ε) · weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.to(torch.float32)
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, inverse)
        ctx.epsilon = epsilon
        return weight * (wide * inverse).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            # Double backward: the saved inverse is a constant for autograd, and must depend on x here.
            wide = x.to(torch.float32)
            inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + ctx.epsilon)
        normalised = x.to(torch.float32) * inverse
        grad_weight = (grads_out[0] * normalised.to(x.dtype)).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        grad_normalised = (grads_out[0] * weight).to(torch.float32)
        # The part along x changes the length only, which the norm divides out.
        along = (grad_normalised * normalised).mean(-1, keepdim=True)
        if torch.is_grad_enabled():
            return ((grad_normalised - normalised * along) * inverse).to(x.dtype), grad_weight, None
        # No fused multiply and add: its vectors round otherwise than the rest of a row, and so would other splits.
        return grad_normalised.sub_(normalised.mul_(along)).mul_(inverse).to(x.dtype), grad_weight, None


class _SiluTimes(torch.autograd.Function):
    """gate, up [...,F] → silu(gate) · up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grads_out: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        grad_up = grads_out[0] * nn.functional.silu(gate) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_up
        if not torch.is_grad_enabled():
            return torch.ops.aten.silu_backward(grads_out[0] * up, gate), grad_up
        # Double backward: `silu_backward` has no derivative, so the formula is written out.
        sigmoid = torch.sigmoid(gate)
        return grads_out[0] * up * sigmoid * (1 + gate * (1 - sigmoid)), grad_up
