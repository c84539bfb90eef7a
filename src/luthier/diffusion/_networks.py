"""A denoiser that trains in seconds, for tests and proofs."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class FlowMLP(nn.Module):
    """An MLP over points or tiny pictures: x [R,...] of `size` numbers, level [R], label [R] → prediction like x.

    Every layer receives the level, its sines and cosines, and (with `classes`) the embedding of the label.
    """

    def __init__(self, size: int, width: int = 64, layers: int = 3, classes: int = 0, waves: int = 4):
        super().__init__()
        self.waves = waves
        self.words = nn.Embedding(classes, width) if classes else None
        condition = 1 + 2 * waves + (width if classes else 0)
        sizes = [size, *[width] * layers]
        self.layers = nn.ModuleList(nn.Linear(inner + condition, outer) for inner, outer in pairwise(sizes))
        self.last = nn.Linear(width, size)

    def forward(self, x: Tensor, level: Tensor, label: Tensor | None = None) -> Tensor:
        angles = level[:, None] * math.pi * 2.0 ** torch.arange(self.waves, device=level.device, dtype=level.dtype)
        conditions = [level[:, None], angles.sin(), angles.cos()]
        if self.words is not None and label is not None:
            conditions.append(self.words(label))
        condition = torch.cat(conditions, 1)
        hidden = x.flatten(1)
        for layer in self.layers:
            hidden = nn.functional.silu(layer(torch.cat([hidden, condition], 1)))
        return self.last(hidden).reshape(x.shape)
