"""Several rewards, each normalised within its group before they are summed."""

from __future__ import annotations

from typing import ClassVar

import numpy
from numpy import ndarray
from pydantic import Field

from luthier.errors import RecipeError
from luthier.rollouts.advantages._statistics import mean_and_std
from luthier.rollouts.base import Advantage, Arrays, Rollout

ROUNDING = 1e-12
"""A mean of numbers near 1 that is smaller than this is taken for a rounding error of 0."""


class NormThenSum(Advantage):
    """S = Σ_k w_k (r_k - mean_k) / (std_k + epsilon) by group, then (S - mean) / (std + epsilon) over the rollout.

    Rewards of large and of small spread count alike. This link reads the single rewards by name and not their weighted
    sum, so it has to be the first of its chain. A reward counts by its weight in `reward`, unless `weights` names it.

    Source: arXiv 2601.05242.
    """

    PAPER: ClassVar[str] = "arXiv 2601.05242"
    COMPARES: ClassVar = True
    READS_PARTS: ClassVar = True
    TAKES: ClassVar = "rewards"
    SETTINGS: ClassVar = ({}, {"epsilon": 0.1}, {"weights": {"one": 3.0}})

    weights: dict[str, float] = Field(
        default_factory=dict,
        description="Factor of each reward by name, applied after its normalisation: the weight in `reward` unless "
        "named, 0 leaves the reward out. Larger gives the reward more weight.",
    )
    epsilon: float = Field(
        1e-4,
        gt=0,
        description="Number added to each deviation, of a reward in its group and of the sum, before dividing by it. "
        "Larger damps rewards that hardly differ.",
    )

    def compute(self, rollout: Rollout, values: Arrays) -> ndarray:
        if unknown := sorted(set(self.weights) - set(rollout.parts)):
            raise RecipeError(
                f"norm_then_sum: there is no reward `{unknown[0]}`.", f"Known: {', '.join(rollout.parts)}."
            )
        total = numpy.where(numpy.isfinite(rollout.rewards), 0.0, numpy.nan)
        groups = rollout.by_group(self.kind)
        for name, reward in rollout.parts.items():
            # `NAME.PART` is a part of the reward NAME, which already counts it.
            usual = 0.0 if "." in name else rollout.weights.get(name, 1.0)
            weight = self.weights.get(name, usual)
            for members in groups:
                mean, std = mean_and_std(reward[members])
                z = (reward[members] - mean) / (std + self.epsilon)
                total[members] += weight * numpy.where(numpy.isfinite(z), z, 0.0)
        mean, std = mean_and_std(total)
        # Every group has mean 0, so the total mean is 0 but for rounding; groups of equal rewards keep exactly 0.
        if abs(mean) < ROUNDING:
            mean = 0.0
        return (total - mean) / (std + self.epsilon)
