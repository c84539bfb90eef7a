"""Constant: warm-up, then flat."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from luthier.engine.schedules._warmup import warmed_up
from luthier.engine.schedules.base import Schedule


class Constant(Schedule):
    """Learning-rate factor: linear up over the first `warmup` of the budget, then 1."""

    SETTINGS: ClassVar = ({}, {"warmup": 0.4})

    warmup: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of the budget over which the rate rises from 0 in a straight line. Longer spares the start "
        "large steps.",
    )

    def factor(self, progress: float) -> float:
        """Factor in [0,1] at `progress` in [0,1] (the middle of the update's share of the budget)."""
        return warmed_up(progress, self.warmup, lambda _rest: 1.0)
