"""REINFORCE: each token is credited with the discounted rewards from there on."""

from __future__ import annotations

from typing import ClassVar

import numpy
from pydantic import Field

from luthier.rollouts.base import Advantage, Arrays, Rollout


class Returns(Advantage):
    """A_t = r_t + gamma A_{t+1}, over the trained tokens of each answer.

    REINFORCE++ (arXiv 2501.03262) is `[kl_penalty, returns, whiten]`.
    """

    PAPER: ClassVar[str] = "arXiv 2501.03262"
    TAKES: ClassVar = "rewards"
    SETTINGS: ClassVar = ({}, {"gamma": 0.5})

    gamma: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Discount γ per token of later rewards. 1 credits a token equally with every later reward; smaller "
        "credits it less with distant ones.",
    )

    def compute(self, rollout: Rollout, values: Arrays) -> Arrays:
        returns = []
        for rewards, trained in zip(values, rollout.trained, strict=True):
            total, of_answer = 0.0, numpy.zeros(len(rewards))
            for index in trained.nonzero()[0][::-1]:
                total = rewards[index] + self.gamma * total
                of_answer[index] = total
            returns.append(of_answer)
        return returns
