"""Temporary parameters: small additions to a model that live for one update and are stepped uphill once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
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
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])))
        with torch.no_grad():
            for value, gradient in zip(self.values, gradients, strict=True):
                value += gradient * (size / (norm + 1e-30))
                value.requires_grad_(False)
        return norm


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
