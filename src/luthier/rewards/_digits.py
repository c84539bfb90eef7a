"""A small network that tells drawn digits apart, for a reward that judges pictures of them."""

from __future__ import annotations

from functools import cache

import numpy
import torch
from torch import nn

from luthier.vision.digits import CLASSES, SIDE, digit_rows

DRAWN, STEPS, SIZE, NOISE = 3000, 200, 128, 0.2


@cache
def classifier(seed: int) -> nn.Module:
    """Learned from the same drawn digits whatever the seed, which is that of its weights and of the noise on them."""
    rows = digit_rows(DRAWN)
    images = torch.tensor(numpy.stack([row.streams["image"].values for row in rows]))
    labels = torch.tensor([int(row.streams["label"].values) for row in rows])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 64), nn.GELU(), nn.Linear(64, CLASSES))
    noise = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(module.parameters(), 3e-3)
    with torch.enable_grad():
        for step in range(STEPS):
            at = torch.arange(SIZE) + step * SIZE % (DRAWN - SIZE)
            noisy = images[at] + NOISE * torch.randn(images[at].shape, generator=noise)
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(noisy), labels[at]).backward()
            optimiser.step()
    return module.requires_grad_(False)


def probability(seed: int, pictures: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The classifier's probability [R] that pictures [R,1,8,8] show their label [R]."""
    judge = classifier(seed).to(pictures.device)
    return judge(pictures.float()).softmax(1).gather(1, label[:, None])[:, 0]
