"""Generalised advantage estimation, for PPO with a value model."""

from __future__ import annotations

from typing import ClassVar

import numpy
from numpy import ndarray
from pydantic import Field

from luthier.rollouts.base import Advantage, Arrays, Rollout


class Gae(Advantage):
    """delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, over the trained tokens of an answer.

    V_t, in the column `values`, is the value of the state *before* token t; after the last token it is 0. The value
    model's target, A_t + V_t, becomes the column `returns`. PPO whitens: `[kl_penalty, gae, whiten]`.

    Source: arXiv 1506.02438, equation 16.
    """

    PAPER: ClassVar[str] = "arXiv 1506.02438"
    READS: ClassVar = ("values",)
    WRITES: ClassVar = ("returns",)
    TAKES: ClassVar = "rewards"
    SETTINGS: ClassVar = ({}, {"gamma": 0.5}, {"lam": 0.5})

    gamma: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Discount γ per token of later rewards. Smaller credits early tokens less for a late reward; TRL "
        "has 1.",
    )
    lam: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Decay λ per token of later temporal-difference errors. 1 relies on rewards (no bias, more "
        "noise), 0 on the next value alone. TRL has 0.95.",
    )

    def compute(self, rollout: Rollout, values: Arrays) -> Arrays:
        advantages, returns = [], []
        for rewards, state_values, trained in zip(values, rollout.columns["values"], rollout.trained, strict=True):
            advantage = numpy.full(len(rewards), 0.0)
            advantage[trained] = self._estimate(rewards[trained], state_values[trained])
            advantages.append(advantage)
            # Without a reward there is no target; the value's own prediction as target gives no gradient.
            known = trained & numpy.isfinite(advantage)
            returns.append(numpy.where(known, advantage + state_values, state_values))
        rollout.columns["returns"] = returns
        return advantages

    def _estimate(self, rewards: ndarray, state_values: ndarray) -> ndarray:
        """Advantages [n] of consecutive tokens, from rewards [n] and values [n]."""
        following = numpy.append(state_values[1:], 0.0)
        deltas = rewards + self.gamma * following - state_values
        total, advantages = 0.0, numpy.zeros(len(rewards))
        for index in range(len(rewards) - 1, -1, -1):
            total = deltas[index] + self.gamma * self.lam * total
            advantages[index] = total
        return advantages
