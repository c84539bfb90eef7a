"""Temporary parameters: small additions to a model that live for one update and are stepped uphill once."""

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
    """One addition per site, zero until it is stepped: `value` to a layer's output, or `value down x` to a linear's.

    The additions act in forwards inside `active()`, and where checkpointing computes those again; `attached()` must
    last until after their backward.
    """

    def __init__(self, sites: Sequence[tuple[nn.Module, Tensor | None]], values: Sequence[Tensor]):
        self.sites = sites
        self.values = [value.requires_grad_() for value in values]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks at every site."""
        handles = [
            module.register_forward_hook(self._hook(index, down)) for index, (module, down) in enumerate(self.sites)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def active(self) -> AbstractContextManager[None]:
        """The forwards in which the additions act."""
        return context.forward_context(auxiliary=self)

    def _hook(self, index: int, down: Tensor | None) -> Callable[..., Any]:
        def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
            if context.context_value("auxiliary") is not self:
                return None
            plain = output[0] if isinstance(output, tuple) else output
            addition = self.values[index].to(plain.dtype)
            if down is not None:
                addition = nn.functional.linear(nn.functional.linear(inputs[0], down.to(plain.dtype)), addition)
            return (plain + addition, *output[1:]) if isinstance(output, tuple) else plain + addition

        return add

    def ascend(self, gradients: Sequence[Tensor], size: float) -> float:
        """Move along the gradient to length `size`, over all sites together, and stay there; the gradient's norm."""
        norm = _norm(gradients)
        with torch.no_grad():
            for value, gradient in zip(self.values, gradients, strict=True):
                value += gradient * (size / (norm + 1e-30))
                value.requires_grad_(False)
        return norm


class PushedAdapter:
    """The trained adapters themselves, which forwards inside `active()` read as p + shift; p itself never changes.

    The shift is a constant: the gradient of a pushed forward reaches p through p + shift. As with `Auxiliary`, what
    checkpointing computes again reads what its forward read, and `attached()` must last until after the backward.

    Args:
        sites: the linears of the adapters, whose weights are trained.
    """

    def __init__(self, sites: Sequence[nn.Linear]):
        self.sites = sites
        self.values = [site.weight for site in sites]
        self.shifts: list[Tensor] | None = None

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks at every site."""
        handles = []
        for index, site in enumerate(self.sites):
            handles.append(site.register_forward_pre_hook(self._shifter(index)))
            handles.append(site.register_forward_hook(_unshift, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def active(self) -> AbstractContextManager[None]:
        """The forwards that read the shifted values."""
        return context.forward_context(auxiliary=self)

    def _shifter(self, index: int) -> Callable[..., None]:
        def shift(site: nn.Module, _inputs: tuple[Tensor, ...]) -> None:
            if self.shifts is None or context.context_value("auxiliary") is not self:
                return
            value = self.values[index]
            # An attribute of the instance hides the parameter of that name, which stays what and where it is.
            site.__dict__["weight"] = (value + self.shifts[index]).to(value.dtype)

        return shift

    def ascend(self, gradients: Sequence[Tensor], size: float) -> float:
        """Shift all sites together by `size` along the gradient, uphill; the gradient's norm."""
        norm = _norm(gradients)
        self.shifts = [gradient * (size / (norm + 1e-30)) for gradient in gradients]
        return norm


def _unshift(site: nn.Module, _inputs: tuple[Tensor, ...], _output: Any) -> None:
    site.__dict__.pop("weight", None)


def _norm(gradients: Sequence[Tensor]) -> float:
    """Euclidean norm over all tensors together."""
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))


def adapters(policy: TokenPolicy, layers: Sequence[int]) -> PushedAdapter:
    """The trained low-rank adapters of these layers.

    Raises:
        RecipeError: there is none.
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
            "lfu with `auxiliary: trained` pushes a low-rank adapter that is trained, and these layers have none.",
            "Train with tuner `lora`, or set `auxiliary: lora`, which makes additions of its own.",
        )
    return PushedAdapter(sites)


def make(policy: TokenPolicy, kind: Kind, layers: Sequence[int], rank: int, key: str) -> Auxiliary:
    """Fresh additions at these layers: a vector per layer, or B A per linear with A drawn from `key` and B zero.

    Raises:
        ModelError: the layers hold no linear that a low-rank addition fits.
    """
    chosen = [policy.layers[index] for index in layers]
    example = next(policy.module.parameters())
    options: dict[str, Any] = {"dtype": torch.promote_types(example.dtype, torch.float32), "device": example.device}
    if kind == "steering":
        config = text_config(policy.module)
        return Auxiliary(
            [(layer, None) for layer in chosen], [torch.zeros(config.hidden_size, **options) for _ in chosen]
        )
    linears = [linear for layer in chosen for linear in _outermost_linears(layer)]
    if not linears:
        raise ModelError("The layers have no linear modules for low-rank additions.", "Set `auxiliary: steering`.")
    generator = torch.Generator().manual_seed(seed56(key))
    sites, values = [], []
    for linear in linears:
        draws = torch.rand(rank, linear.in_features, generator=generator, dtype=torch.float64)
        sites.append((linear, ((2 * draws - 1) / linear.in_features**0.5).to(**options)))
        values.append(torch.zeros(linear.out_features, rank, **options))
    return Auxiliary(sites, values)


def _outermost_linears(module: nn.Module) -> Iterator[Any]:
    """Linears, an adapter around one counting as the linear it is."""
    for child in module.children():
        if isinstance(child, nn.Linear) or isinstance(getattr(child, "base_layer", None), nn.Linear):
            yield child
        else:
            yield from _outermost_linears(child)
