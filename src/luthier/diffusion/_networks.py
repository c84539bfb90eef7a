"""A denoiser small enough for tests and proofs in seconds."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


class FlowMLP(nn.Module):
    """Points or tiny pictures [R,...] of `size` numbers, a level [R], a label [R] if there are classes → like x.

    Each layer hears the level (as sines and cosines) and the label again.
    """

    def __init__(self, size: int, width: int = 64, layers: int = 3, classes: int = 0, waves: int = 4):
        super().__init__()
        self.waves = waves
        self.words = nn.Embedding(classes, width) if classes else None
        told = 1 + 2 * waves + (width if classes else 0)
        sizes = [size, *[width] * layers]
        self.layers = nn.ModuleList(nn.Linear(a + told, b) for a, b in pairwise(sizes))
        self.last = nn.Linear(width, size)

    def forward(self, x: Tensor, level: Tensor, label: Tensor | None = None) -> Tensor:
        angles = level[:, None] * math.pi * 2.0 ** torch.arange(self.waves, device=level.device, dtype=level.dtype)
        told = [level[:, None], angles.sin(), angles.cos()]
        if self.words is not None and label is not None:
            told.append(self.words(label))
        around = torch.cat(told, 1)
        hidden = x.flatten(1)
        for layer in self.layers:
            hidden = nn.functional.silu(layer(torch.cat([hidden, around], 1)))
        return self.last(hidden).reshape(x.shape)
