"""The tiny workspace of each modality that is not a language model's: what the conformance matrix stands on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from luthier.diffusion._networks import FlowMLP
from luthier.diffusion.policy import PREFIX, DenoiserPolicy
from luthier.models.encoder import EncoderPolicy
from luthier.types import Row, Stream
from luthier.vision._encoders import DualEncoder
from luthier.vision.digits import SIDE, digit_rows

CLASSES = 4


@dataclass(frozen=True)
class TinyModel:
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


def latent_rows(rows: Sequence[Row]) -> list[Row]:
    """Digits as clean samples under their labels."""
    return [
        replace(row, streams={"latent": row.streams["image"], PREFIX + "label": row.streams["label"]}) for row in rows
    ]


def _judged_rows(count: int, seed: int) -> list[Row]:
    """Clean samples with a level and a judgement each, as a rollout brings them."""
    rows = []
    for index, row in enumerate(latent_rows(digit_rows(count, seed, CLASSES))):
        level, r = Stream(0.1 + 0.8 * index / count, "row"), Stream(0.15 + 0.7 * (index * 5 % count) / count, "row")
        rows.append(replace(row, streams={**row.streams, "level": level, "optimality": r}))
    return rows


TINY_MODELS: Mapping[str, TinyModel] = {
    "contrastive": TinyModel(  # a bias at which wrong pairs weigh as much as right ones
        lambda dtype, seed: seeded(lambda: DualEncoder(8, CLASSES, bias=-1.0), dtype, seed),
        dual_encoder,
        lambda count, seed: digit_rows(count, seed, CLASSES),
    ),
    "diffusion": TinyModel(
        lambda dtype, seed: seeded(lambda: FlowMLP(SIDE * SIDE, 16, 2, CLASSES), dtype, seed),
        DenoiserPolicy,
        _judged_rows,
    ),
}
