"""Cosine: warm-up, then half a cosine down to a floor."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from luthier.engine.schedules._warmup import warmed_up
from luthier.engine.schedules.base import Schedule


class Cosine(Schedule):
    """Learning-rate factor: linear over the first `warmup` of the budget, then cosine down to `floor`."""

    SETTINGS: ClassVar = ({}, {"warmup": 0.4}, {"floor": 0.5})

    warmup: float = Field(
        0.03,
        ge=0.0,
        le=1.0,
        description="Share of the budget over which the rate rises from 0 in a straight line. Longer spares the start "
        "large steps.",
    )
    floor: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Factor of the learning rate at the end of the budget. 0 ends at nothing, 1 never falls.",
    )

    def factor(self, progress: float) -> float:
        """Factor in [0,1] at `progress` in [0,1] (the middle of the update's share of the budget)."""
        return warmed_up(progress, self.warmup, self._falling)

    def _falling(self, rest: float) -> float:
        return self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * rest))
