"""Cosine: warm-up, then half a cosine down to a floor."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from luthier.engine.schedules.base import Schedule


class Cosine(Schedule):
    """Learning-rate factor: linear over the first `warmup` of the budget, then cosine down to `floor`."""

    SETTINGS: ClassVar = ({}, {"warmup": 0.4}, {"floor": 0.5})

    warmup: float = Field(0.03, ge=0.0, le=1.0)
    floor: float = Field(0.0, ge=0.0, le=1.0)

    def factor(self, progress: float) -> float:
        """Factor in [0,1] at `progress` in [0,1] (the middle of the update's share of the budget)."""
        if progress < self.warmup:
            return progress / self.warmup
        rest = (progress - self.warmup) / (1.0 - self.warmup) if self.warmup < 1.0 else 1.0
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * rest))
