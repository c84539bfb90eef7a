"""Quantised layers under an adapter: the gradient that passes through them is the one of what they compute."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.weights import is_quantised

PROBES = 16
"""Random inputs of which the change of a layer's output is compared with what its gradient promises."""
TOLERANCE = 0.1
"""Of the changes, as vectors. Layers that also quantise their inputs differ by 0.01; a wrong gradient by 1 and more."""
SWITCHES = ("support_avx512bf16_for_cpu",)
"""Attributes by which bitsandbytes' layers choose a faster form of their weights, which has no backward."""


def correct_gradients(model: nn.Module) -> list[str]:
    """Turn off fast forms of quantised layers whose gradient is wrong; returns sentences that say so.

    A layer of each class and shape is tried on a copy, in the order of a training: a forward without gradient first,
    as checks and references make it, since some layers change their weight's form there for good.

    Raises:
        ModelError: a layer's gradient is wrong in every form.
    """
    switched: list[str] = []
    for name, alike in _groups(model):
        if has_true_gradient(alike[0]):
            continue
        keys = [key for key in SWITCHES if getattr(alike[0], key, False)]
        for layer in alike:
            for key in keys:
                setattr(layer, key, False)
        if not keys or not has_true_gradient(alike[0]):
            raise ModelError(
                f"The gradient through {name} ({type(alike[0]).__name__}) is not that of what the layer computes, so"
                " nothing before it would learn the right thing.",
                "Start from the model in bfloat16 or float32, or train on another device.",
            )
        switched += [f"{type(alike[0]).__name__}.{key}" for key in keys]
    return [f"{switch} is off: in that form the layer's gradient is wrong." for switch in dict.fromkeys(switched)]


def has_true_gradient(layer: Any) -> bool:
    """Whether a layer's backward belongs to its forward, tried on a copy.

    For a linear map f, a random x and a random g: ∇ₓ⟨g, f(x)⟩ · z = ⟨g, f(z) - f(0)⟩ for every z. The right side needs
    no gradient, and equals the product with the weight in plain numbers.
    """
    tried: Any = copy.deepcopy(layer).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    device, dtype = layer.weight.device, _computes_in(layer)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    # Two rows: libraries have a form of their own for a single one, which only decoding uses.
    x, z, g = draw(2, tried.in_features), draw(PROBES, tried.in_features), draw(1, tried.out_features).repeat(2, 1)
    with torch.no_grad():
        changes = (tried.train()(z) - tried(torch.zeros_like(z))).double() @ g[0].double()
    try:
        with torch.no_grad():
            tried.eval()(x)
        x.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(tried.train()(x), x, g)
    except Exception:  # a form that has no backward, or that cannot hold a weight of this shape
        return False
    promised = z.double() @ gradient[0].double()
    return bool((promised - changes).norm() <= TOLERANCE * changes.norm())


def _groups(model: nn.Module) -> Iterator[tuple[str, list[Any]]]:
    """Quantised linear layers of one class and shape together, with the name of the first."""
    groups: dict[tuple[Any, ...], tuple[str, list[Any]]] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and is_quantised(layer.weight) and not layer.weight.is_meta:
            key = (type(layer), type(layer.weight), layer.in_features, layer.out_features)
            groups.setdefault(key, (name, []))[1].append(layer)
    yield from groups.values()


def _computes_in(layer: Any) -> torch.dtype:
    """The type of numbers that a layer takes."""
    wanted = getattr(layer, "compute_dtype", None) or layer.weight.dtype
    return wanted if wanted.is_floating_point else torch.float32
