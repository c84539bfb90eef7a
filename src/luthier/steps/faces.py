"""The tiny ground of each face that is not a language model's: what the conformance matrix stands on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from luthier.models.encoder import EncoderPolicy
from luthier.types import Row
from luthier.vision._encoders import DualEncoder
from luthier.vision.digits import digit_rows

CLASSES = 4


@dataclass(frozen=True)
class Face:
    """A model `module(dtype, seed)`, what objectives see of it, and rows `rows(count, seed)`."""

    module: Callable[[torch.dtype, int], nn.Module]
    policy: Callable[[nn.Module], Any]
    rows: Callable[[int, int], list[Row]]


def seeded(make: Callable[[], nn.Module], dtype: torch.dtype, seed: int) -> nn.Module:
    """A module, the same for the same seed, whatever was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().to(dtype=dtype).eval()


def dual_encoder(module: nn.Module) -> EncoderPolicy:
    """Digits and their labels, seen through one space."""
    return EncoderPolicy(module, {"image": "image", "label": "label"})


FACES: Mapping[str, Face] = {
    "encoder": Face(  # a bias at which wrong pairs weigh as much as right ones
        lambda dtype, seed: seeded(lambda: DualEncoder(8, CLASSES, bias=-1.0), dtype, seed),
        dual_encoder,
        lambda count, seed: digit_rows(count, seed, CLASSES),
    ),
}
