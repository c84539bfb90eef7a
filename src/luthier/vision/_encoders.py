"""An image-text dual encoder that trains in seconds, for tests and proofs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.vision.digits import CLASSES, SIDE


class ImageTower(nn.Module):
    """Encodes pictures [R,1,8,8] as vectors [R,width]."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.inner = nn.Linear(SIDE * SIDE, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.outer = nn.Linear(2 * width, width)

    def forward(self, image: Tensor) -> Tensor:
        return self.outer(self.dropout(functional.gelu(self.inner(image.flatten(1)))))


class LabelTower(nn.Module):
    """Encodes labels [R], captions of one word, as vectors [R,width]."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.words = nn.Embedding(classes, width)
        self.outer = nn.Linear(width, width)

    def forward(self, label: Tensor) -> Tensor:
        return self.outer(self.words(label))


class DualEncoder(nn.Module):
    """An image tower and a label tower with a learned scale (as its logarithm) and a learned bias of their products.

    The scale starts at 10 and the bias at -10 (SigLIP, arXiv 2303.15343): nearly all pairs of a batch do not belong
    together, and the first predictions say so.
    """

    def __init__(self, width: int = 32, classes: int = CLASSES, dropout: float = 0.0, bias: float = -10.0):
        super().__init__()
        self.image = ImageTower(width, dropout)
        self.text = LabelTower(width, classes)
        self.logit_scale = nn.Parameter(torch.tensor([math.log(10.0)]))
        self.logit_bias = nn.Parameter(torch.tensor([bias]))

    def forward(self, image: Tensor, label: Tensor) -> dict[str, Tensor]:
        return {"image_embeds": self.image(image), "text_embeds": self.text(label)}
