"""Parameter sets: other values for a model's trained parameters, taken on for the length of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from luthier.models.policy import reading
from luthier.models.wide import widened


class ParameterSet:
    """A copy of the trained parameters, equal to them when it is made. What is not trained is shared.

    Values are kept in float32 or wider, so that a slow average moves. `using` is for reading only: gradients
    belong to the parameters themselves.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.values = {name: widened(p.detach()).clone() for name, p in module.named_parameters() if p.requires_grad}

    @contextmanager
    def using(self) -> Iterator[None]:
        """The module with these values, in eval mode and without gradient; on leaving, everything is as before."""
        parameters = dict(self.module.named_parameters())
        kept = {name: parameters[name].data for name in self.values}
        try:
            for name, value in self.values.items():
                parameters[name].data = value.to(kept[name].dtype)
            with reading(self.module):
                yield
        finally:
            for name, data in kept.items():
                parameters[name].data = data

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """value ← decay · value + (1 - decay) · parameter."""
        parameters = dict(self.module.named_parameters())
        for name, value in self.values.items():
            value.mul_(decay).add_(widened(parameters[name].detach()), alpha=1 - decay)


class Sets:
    """Several parameter sets by name, as the state of a part."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]):
        self.sets = {name: ParameterSet(module) for name in names}

    def __getitem__(self, name: str) -> ParameterSet:
        return self.sets[name]

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{label}/{name}": v for label, one in self.sets.items() for name, v in one.values.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for label, one in self.sets.items():
            for name, value in one.values.items():
                value.copy_(state[f"{label}/{name}"])
