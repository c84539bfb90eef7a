"""RMSNorm and gated MLPs that compute their intermediates again in the backward: the same bits, less memory.

Transformers writes both as a chain of elementwise products, of which autograd keeps every factor. These forms compute
the same forward, bit for bit, keep its inputs, and compute the factors again. Where a class rounds otherwise in a type,
its own forward runs in that type.
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
    """The lean form of a class of modules; None for a class whose forward it does not equal in float32.

    A class's name only suggests its formula (`GemmaRMSNorm` multiplies by 1 + weight), so both forwards are run on a
    small instance, and their outputs compared bit for bit.
    """
    for form in (_Norm, _Gated):
        if kind.__name__.endswith(form.ENDS) and _same_output(kind, form, torch.float32, torch.float32):
            return type(f"Lean{kind.__name__}", (form, kind), {})
    return None


@cache
def _same_output(kind: Any, form: Any, weights: torch.dtype, values: torch.dtype) -> bool:
    """Whether class and form give the same bits and nearly the same gradients, with these types of weights and values.

    Some classes multiply by the weight before they round to the values' type, and some return the weights' type.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            # Without the class's own constructor, whose arguments differ from model to model.
            layer: Any = kind.__new__(kind)
            nn.Module.__init__(layer)
            for name, member in form.members().items():
                setattr(layer, name, member.to(weights) if isinstance(member, nn.Module) else member)
            if isinstance(getattr(layer, "weight", None), Tensor):
                layer.weight = nn.Parameter(layer.weight.detach().to(weights))
            x = torch.randn(64, 8).to(values)
        own, own_gradients = _with_gradients(layer, kind.forward, x)
        lean, lean_gradients = _with_gradients(layer, form.compute, x)
        tolerance = 1e-5 if values == weights == torch.float32 else 5e-2
        near = all(_near(a, b, tolerance) for a, b in zip(own_gradients, lean_gradients, strict=True))
        return own.dtype == lean.dtype and torch.equal(own, lean) and near
    except Exception:  # its forward needs members that these forms do not know, or returns something else
        return False


def _with_gradients(layer: nn.Module, forward: Any, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    x = x.clone().requires_grad_()
    # Hooks of its own: those of a checkpointed forward around it would count what is saved here.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is):
        output = forward(layer, x)
        return output.detach(), torch.autograd.grad(output.float().square().sum(), [x, *layer.parameters()])


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    same_kind = one.dtype == other.dtype and one.shape == other.shape
    return same_kind and float((one - other).float().norm()) <= tolerance * float(one.float().norm())


class _Norm(nn.Module):
    """x / sqrt(mean(x²) + ε), in float32, times a weight."""

    ENDS = "RMSNorm"

    @staticmethod
    def members() -> dict[str, Any]:
        """Members of a small instance."""
        return {"weight": nn.Parameter(torch.randn(8)), "variance_epsilon": 0.01}

    def compute(self: Any, x: Tensor) -> Tensor:
        return _RootMeanSquare.apply(x, self.weight, self.variance_epsilon)

    def forward(self: Any, x: Tensor) -> Tensor:
        own = type(self).__bases__[-1]
        if not _same_output(own, _Norm, self.weight.dtype, x.dtype):
            return super().forward(x)
        return self.compute(x)


class _Gated(nn.Module):
    """down(silu(gate(x)) · up(x))."""

    ENDS = "MLP"

    @staticmethod
    def members() -> dict[str, Any]:
        """Members of a small instance."""
        widths = {"gate_proj": (8, 6), "up_proj": (8, 6), "down_proj": (6, 8)}
        return {**{name: nn.Linear(*shape) for name, shape in widths.items()}, "act_fn": nn.SiLU()}

    def compute(self: Any, x: Tensor) -> Tensor:
        return self.down_proj(_SiluTimes.apply(self.gate_proj(x), self.up_proj(x)))

    def forward(self: Any, x: Tensor) -> Tensor:
        # The activation is the instance's choice, not the class's: `form_of` has tried SiLU only.
        silu = type(self.act_fn).__name__ in ("SiLU", "SiLUActivation")
        own = type(self).__bases__[-1]
        if not silu or not _same_output(own, _Gated, x.dtype, x.dtype):
            return super().forward(x)
        return self.compute(x)


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
