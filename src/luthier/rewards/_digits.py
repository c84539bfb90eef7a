"""A small classifier of drawn digits, for the reward that judges images of them."""

from __future__ import annotations

from functools import cache

import numpy
import torch
from torch import nn

from luthier.vision.digits import CLASSES, SIDE, digit_rows

TRAINING_ROWS, STEPS, BATCH, NOISE = 3000, 200, 128, 0.2


@cache
def classifier(seed: int) -> nn.Module:
    """A frozen classifier of images `[R,1,8,8]` into logits `[R,CLASSES]`.

    Args:
        seed: of the weights and of the noise on the images; the drawn digits are the same for every seed.
    """
    rows = digit_rows(TRAINING_ROWS)
    images = torch.tensor(numpy.stack([row.streams["image"].values for row in rows]))
    labels = torch.tensor([int(row.streams["label"].values) for row in rows])
    with torch.random.fork_rng():  # nn.Linear draws from torch's global generator, which the run must find unchanged
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 64), nn.GELU(), nn.Linear(64, CLASSES))
    noise = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(module.parameters(), 3e-3)
    with torch.enable_grad():  # samples are judged under no_grad
        for step in range(STEPS):
            indices = torch.arange(BATCH) + step * BATCH % (TRAINING_ROWS - BATCH)
            # Noise makes the classifier usable on samples that are not as clean as drawn digits.
            noisy = images[indices] + NOISE * torch.randn(images[indices].shape, generator=noise)
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(noisy), labels[indices]).backward()
            optimiser.step()
    return module.requires_grad_(False)


def probability(seed: int, pictures: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The classifier's probability `[R]` that images `[R,1,8,8]` show their label `[R]`."""
    judge = classifier(seed).to(pictures.device)
    return judge(pictures.float()).softmax(1).gather(1, label[:, None])[:, 0]
