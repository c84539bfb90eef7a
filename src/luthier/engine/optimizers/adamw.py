"""AdamW with decoupled weight decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.engine.optimizers.base import Optimizer
from luthier.parts import lazy

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch = lazy("torch")


class AdamW(Optimizer):
    """AdamW (arXiv 1711.05101), torch's fused kernel; moments in the type of the master weights.

    Weight decay acts on matrices only, never on norms and biases.
    """

    PAPER: ClassVar[str] = "arXiv 1711.05101"
    SETTINGS: ClassVar = (
        {},
        {"lr": 1e-3},
        {"betas": [0.5, 0.999]},
        {"eps": 1e-3},
        {"weight_decay": 0.5},
        {"clip": 1e-4},
    )

    lr: float = Field(
        2e-4,
        gt=0,
        description="Highest learning rate; the schedule multiplies it. 2e-4 is a usual start for LoRA, a tenth of it "
        "for `full`, and 5e-6 for dpo.",
    )
    betas: tuple[float, float] = Field(
        (0.9, 0.95),
        description="Decay per update of the running means of gradients and of their squares. Larger averages over "
        "more updates.",
    )
    eps: float = Field(
        1e-8,
        gt=0,
        description="Number added to the root of the mean square before dividing by it. Larger damps the steps of "
        "weights with tiny gradients.",
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Share of a matrix taken off per update, times the learning rate. Larger keeps weights smaller; "
        "norms and biases are spared.",
    )
    clip: float | None = Field(
        1.0,
        gt=0,
        description="Bound of the gradient's norm over all parameters of an update: a larger gradient is scaled down "
        "to it. Null sets no bound.",
    )

    def make(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimiser over these master weights."""
        decayed = [p for p in parameters if p.dim() >= 2]
        rest = [p for p in parameters if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=self.lr, betas=self.betas, eps=self.eps, fused=True
        )
