"""GRPO: rewards relative to the group, in units of its deviation."""

from __future__ import annotations

from typing import ClassVar

from numpy import ndarray
from pydantic import Field

from luthier.rollouts.advantages._statistics import mean_and_std
from luthier.rollouts.base import Advantage, Arrays, Rollout


class GroupNorm(Advantage):
    """A_i = (R_i - mean) / (std + epsilon) over the answers to one prompt; the deviation is unbiased.

    A group whose rewards are equal gets 0.

    Source: arXiv 2402.03300. The paper leaves the deviation open; the public implementations divide by G - 1.
    """

    PAPER: ClassVar[str] = "arXiv 2402.03300"
    COMPARES: ClassVar = True
    TAKES: ClassVar = "rewards"
    SETTINGS: ClassVar = ({}, {"epsilon": 0.1})

    epsilon: float = Field(
        1e-4,
        gt=0,
        description="Number added to the group's deviation before dividing by it. Larger damps groups whose rewards "
        "hardly differ; TRL has 1e-4.",
    )

    def compute(self, rollout: Rollout, values: Arrays) -> ndarray:
        rewards = rollout.totals(values)
        for members in rollout.by_group(self.kind):
            mean, std = mean_and_std(rewards[members])
            rewards[members] = (rewards[members] - mean) / (std + self.epsilon)
        return rewards
