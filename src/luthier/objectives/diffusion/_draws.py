"""Keyed random numbers of a row: functions of (seed, update, row id, draw, index), never of a generator's state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.keyed import signed64
from luthier.objectives._draws import mix
from luthier.update import Update


def uniform(update: Update, examples: Sequence[str], draw: int, count: int, device: torch.device) -> Tensor:
    """Numbers [R,count] in (0,1), float64: `count` of each of the R rows with these ids."""
    hashes = torch.tensor([signed64(example) for example in examples], dtype=torch.long, device=device)
    key = torch.tensor(update.seed * 1_000_003 + update.index, device=device)
    base = mix(hashes ^ mix(key)) ^ mix(torch.tensor(0x5851F42D4C957F2D + draw, device=device))
    offsets = torch.arange(1, count + 1, device=device) * 0x2545F4914F6CDD1D
    bits = (mix(base[:, None] + offsets) >> 11) & (2**53 - 1)
    # Half a step off the grid, so that 0 never occurs: `normal` takes its logarithm.
    return (bits.double() + 0.5) / 2**53


def normal(update: Update, examples: Sequence[str], draw: int, like: Tensor) -> Tensor:
    """Standard normal numbers with shape [R,...], dtype and device of `like`, by Box and Muller's transform."""
    count = like[0].numel()
    first, second = uniform(update, examples, draw, 2 * count, like.device).split(count, dim=1)
    values = (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()
    return values.reshape(like.shape).to(like.dtype)
