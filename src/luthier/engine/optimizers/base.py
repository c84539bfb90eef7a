"""The family of optimisers: rules by which an update's gradient moves the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from luthier.errors import RecipeError
from luthier.parts import Part

if TYPE_CHECKING:
    import torch
    from torch import nn


class Optimizer(Part):
    """Makes a torch optimiser over fp32 master weights. Verb: `make`.

    A part declares the options `lr`, the learning rate that a schedule multiplies, and `clip`, the largest norm of an
    update's whole gradient before the step, or None.
    """

    SLOT: ClassVar[str] = "optimizer"

    def make(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimiser over these master weights; all its state must be in its `state_dict`."""
        raise RecipeError(f"{type(self).__name__} does not define `make(self, parameters)`.")
