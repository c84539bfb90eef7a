"""Rewards relative to the group, in units of the deviation over the whole rollout."""

from __future__ import annotations

from typing import ClassVar

from numpy import ndarray
from pydantic import Field

from luthier.rollouts.advantages._statistics import less_group_means, mean_and_std
from luthier.rollouts.base import Advantage, Arrays, Rollout


class BatchNorm(Advantage):
    """A_i = (R_i - mean of the group) / (std + epsilon), with the unbiased deviation of all rewards of the rollout.

    Source: arXiv 2508.08221 (group mean, batch deviation).
    """

    PAPER: ClassVar[str] = "arXiv 2508.08221"
    COMPARES: ClassVar = True
    TAKES: ClassVar = "rewards"
    SETTINGS: ClassVar = ({}, {"epsilon": 0.1})

    epsilon: float = Field(
        1e-4,
        gt=0,
        description="Number added to the deviation of the rollout's rewards before dividing by it. Larger damps "
        "advantages where rewards hardly differ.",
    )

    def compute(self, rollout: Rollout, values: Arrays) -> ndarray:
        rewards = rollout.totals(values)
        std = mean_and_std(rewards)[1]  # of the rewards as they are: groups of different difficulty widen it
        return less_group_means(rewards, rollout.by_group(self.kind)) / (std + self.epsilon)
