"""Constant: warm-up, then flat."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from luthier.engine.schedules.base import Schedule


class Constant(Schedule):
    """Learning-rate factor: linear up over the first `warmup` of the budget, then 1."""

    SETTINGS: ClassVar = ({}, {"warmup": 0.4})

    warmup: float = Field(0.0, ge=0.0, le=1.0)

    def factor(self, progress: float) -> float:
        """Factor in [0,1] at `progress` in [0,1] (the middle of the update's share of the budget)."""
        return progress / self.warmup if progress < self.warmup else 1.0
