"""Keyed draws of a row: functions of (seed, update, record id, draw, place), never of a generator's state."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.keyed import signed64
from luthier.objectives._draws import mix
from luthier.objectives.base import Update


def uniform(update: Update, records: Sequence[str], draw: int, count: int, device: torch.device) -> Tensor:
    """Numbers [R,count] in (0,1), float64, of each record."""
    names = torch.tensor([signed64(record) for record in records], dtype=torch.long, device=device)
    key = torch.tensor(update.seed * 1_000_003 + update.index, device=device)
    base = mix(names ^ mix(key)) ^ mix(torch.tensor(0x5851F42D4C957F2D + draw, device=device))
    places = torch.arange(1, count + 1, device=device) * 0x2545F4914F6CDD1D
    bits = (mix(base[:, None] + places) >> 11) & (2**53 - 1)
    return (bits.double() + 0.5) / 2**53


def normal(update: Update, records: Sequence[str], draw: int, like: Tensor) -> Tensor:
    """Standard normal numbers like x [R,...], by Box and Muller's transform."""
    count = like[0].numel()
    one, two = uniform(update, records, draw, 2 * count, like.device).split(count, dim=1)
    values = (-2 * one.log()).sqrt() * (2 * math.pi * two).cos()
    return values.reshape(like.shape).to(like.dtype)
