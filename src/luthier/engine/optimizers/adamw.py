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

    Weight decay acts on matrices only, never on norms and biases. `clip` bounds the global gradient norm
    of an update before the step; null turns it off.
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

    lr: float = Field(2e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(1.0, gt=0)

    def make(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimiser over these master weights."""
        decayed = [p for p in parameters if p.dim() >= 2]
        rest = [p for p in parameters if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=self.lr, betas=self.betas, eps=self.eps, fused=True
        )
