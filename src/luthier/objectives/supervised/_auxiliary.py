"""Auxiliary parameters of lfu: additions to a model that exist for one update and take one step of gradient ascent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.errors import ModelError, RecipeError
from luthier.keyed import seed56
from luthier.models import context
from luthier.models.config import text_config
from luthier.models.policy import TokenPolicy

Kind = Literal["lora", "steering"]


class Auxiliary:
    """One addition per site, zero before the ascent step: a vector v to a layer's output, or B A x to a linear's.

    The additions act in forwards inside `active()`. Gradient checkpointing runs these forwards again in the backward,
    so `attached()` must last until the backward is done.

    Args:
        sites: (module, None) for a vector, (module, A [rank,in]) for a low-rank addition.
        values: v [D], or B [out,rank], of each site.
    """

    def __init__(self, sites: Sequence[tuple[nn.Module, Tensor | None]], values: Sequence[Tensor]):
        self.sites = sites
        self.values = [addition.requires_grad_() for addition in values]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Register the hooks that add; leaving the context removes them."""
        handles = []
        for index, (module, down) in enumerate(self.sites):
            handles.append(module.register_forward_hook(self._hook(index, down)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def active(self) -> AbstractContextManager[None]:
        """A context: the additions act in the forwards inside."""
        return context.forward_context(auxiliary=self)

    def _hook(self, index: int, down: Tensor | None) -> Callable[..., Any]:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
            if context.context_value("auxiliary") is not self:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            addition = self.values[index].to(hidden.dtype)
            if down is not None:
                addition = nn.functional.linear(nn.functional.linear(inputs[0], down.to(hidden.dtype)), addition)
            return (hidden + addition, *output[1:]) if isinstance(output, tuple) else hidden + addition

        return add

    def ascend(self, gradients: Sequence[Tensor], size: float) -> float:
        """Take one ascent step of length `size` over all sites together; returns the gradient's norm.

        The additions are constants afterwards: the loss is not differentiated through the ascent step.
        """
        norm = _norm(gradients)
        with torch.no_grad():
            for addition, gradient in zip(self.values, gradients, strict=True):
                addition += gradient * (size / (norm + 1e-30))
                addition.requires_grad_(False)
        return norm


class PerturbedAdapter:
    """The trained adapters, whose weights p forwards inside `active()` read as p + shift; p itself never changes.

    The shift is a constant, so the gradient of such a forward with respect to p passes through p + shift. As with
    `Auxiliary`, `attached()` must last until the backward is done, for gradient checkpointing.

    Args:
        sites: the linear layers of the adapters, whose weights are trained.
    """

    def __init__(self, sites: Sequence[nn.Linear]):
        self.sites = sites
        self.values = [site.weight for site in sites]
        self.shifts: list[Tensor] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Register the hooks that shift; leaving the context removes them."""
        handles = []
        for index, site in enumerate(self.sites):
            handles.append(site.register_forward_pre_hook(self._shifter(index)))
            handles.append(site.register_forward_hook(_unshift, always_call=True))  # also where the forward raises
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def active(self) -> AbstractContextManager[None]:
        """A context: the forwards inside read the shifted weights."""
        return context.forward_context(auxiliary=self)

    def _shifter(self, index: int) -> Callable[..., None]:
        def shift(site: nn.Module, _inputs: tuple[Tensor, ...]) -> None:
            if self.shifts is None or context.context_value("auxiliary") is not self:
                return
            weight = self.values[index]
            # An instance attribute hides the registered parameter of the same name and leaves it in place, so the
            # optimiser and autograd keep seeing the parameter.
            site.__dict__["weight"] = (weight + self.shifts[index]).to(weight.dtype)

        return shift

    def ascend(self, gradients: Sequence[Tensor], size: float) -> float:
        """Set the shift to one ascent step of length `size` over all sites together; returns the gradient's norm."""
        norm = _norm(gradients)
        self.shifts = [gradient * (size / (norm + 1e-30)) for gradient in gradients]
        return norm


def _unshift(site: nn.Module, _inputs: tuple[Tensor, ...], _output: Any) -> None:
    site.__dict__.pop("weight", None)


def _norm(gradients: Sequence[Tensor]) -> float:
    """Euclidean norm over all tensors together."""
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))


def adapters(policy: TokenPolicy, layers: Sequence[int]) -> PerturbedAdapter:
    """The trained low-rank adapters of these layers.

    Raises:
        RecipeError: these layers have none.
    """
    sites = []
    for index in layers:
        for wrapper in policy.layers[index].modules():
            if not isinstance(getattr(wrapper, "base_layer", None), nn.Linear):
                continue
            for name, module in wrapper.named_modules():
                if isinstance(module, nn.Linear) and name.startswith("lora_") and module.weight.requires_grad:
                    sites.append(module)
    if not sites:
        raise RecipeError(
            "lfu with `auxiliary: trained` perturbs the low-rank adapter that is trained; these layers have none.",
            "Train with tuner `lora`, or set `auxiliary: lora`, which adds temporary adapters.",
        )
    return PerturbedAdapter(sites)


def make(policy: TokenPolicy, kind: Kind, layers: Sequence[int], rank: int, key: str) -> Auxiliary:
    """New additions at these layers: a vector per layer, or B A per linear with A drawn from `key` and B zero.

    Raises:
        ModelError: the layers have no linear layer for a low-rank addition.
    """
    chosen = [policy.layers[index] for index in layers]
    example = next(policy.module.parameters())
    options: dict[str, Any] = {"dtype": torch.promote_types(example.dtype, torch.float32), "device": example.device}
    if kind == "steering":
        width = text_config(policy.module).hidden_size
        return Auxiliary([(layer, None) for layer in chosen], [torch.zeros(width, **options) for _ in chosen])
    linears: list[Any] = []
    for layer in chosen:
        linears += _outermost_linears(layer)
    if not linears:
        raise ModelError("The layers have no linear modules for low-rank additions.", "Set `auxiliary: steering`.")
    # Drawn on the CPU in float64, so that every device and dtype gets the same directions.
    generator = torch.Generator().manual_seed(seed56(key))
    sites, values = [], []
    for linear in linears:
        draws = torch.rand(rank, linear.in_features, generator=generator, dtype=torch.float64)
        sites.append((linear, ((2 * draws - 1) / linear.in_features**0.5).to(**options)))
        values.append(torch.zeros(linear.out_features, rank, **options))
    return Auxiliary(sites, values)


def _outermost_linears(module: nn.Module) -> Iterator[Any]:
    """The linear layers of a module; a linear layer with an adapter counts once, as the wrapper."""
    for child in module.children():
        if isinstance(child, nn.Linear) or isinstance(getattr(child, "base_layer", None), nn.Linear):
            yield child
        else:
            yield from _outermost_linears(child)
