"""Parameter sets: other values of a model's trained parameters, in use for the length of a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from luthier.models.policy import reading
from luthier.models.wide import widened


class ParameterSet:
    """A copy of the trained parameters, equal to them at its creation. Untrained parameters are shared.

    Values are kept in float32 or wider: in bfloat16 a slow average would round back to where it was. `using` computes
    no gradients, which belong to the parameters themselves.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.values = {name: widened(p.detach()).clone() for name, p in module.named_parameters() if p.requires_grad}

    @contextmanager
    def using(self) -> Iterator[None]:
        """The module with these values, in eval mode and without gradient; afterwards its own values and modes."""
        parameters = dict(self.module.named_parameters())
        originals = {name: parameters[name].data for name in self.values}
        try:
            # The data is replaced, not the parameter: tuners and optimisers hold the parameters themselves.
            for name, average in self.values.items():
                parameters[name].data = average.to(originals[name].dtype)
            with reading(self.module):
                yield
        finally:
            for name, original in originals.items():
                parameters[name].data = original

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Exponential moving average: value ← decay · value + (1 - decay) · parameter."""
        parameters = dict(self.module.named_parameters())
        for name, average in self.values.items():
            average.mul_(decay).add_(widened(parameters[name].detach()), alpha=1 - decay)


class Sets:
    """Several parameter sets by name, as the state that a part keeps in checkpoints."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]):
        self.sets = {name: ParameterSet(module) for name in names}

    def __getitem__(self, name: str) -> ParameterSet:
        return self.sets[name]

    def state_dict(self) -> dict[str, Tensor]:
        tensors = {}
        for label, parameter_set in self.sets.items():
            tensors |= {f"{label}/{name}": average for name, average in parameter_set.values.items()}
        return tensors

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for label, parameter_set in self.sets.items():
            for name, average in parameter_set.values.items():
                average.copy_(state[f"{label}/{name}"])
