"""Generalised advantage estimation, for PPO with a value model."""

from __future__ import annotations

from typing import ClassVar

import numpy
from numpy import ndarray
from pydantic import Field

from luthier.rollouts.base import Advantage, Arrays, Rollout


class Gae(Advantage):
    """delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lam A_{t+1}, over the trained tokens of an answer.

    V_t is the value of the state *before* token t and stands at that token; behind the last it is 0. What the value
    model should have said, A_t + V_t, is left as the column `returns`. PPO whitens: `[kl_penalty, gae, whiten]`.

    Source: arXiv 1506.02438.
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
        description="Discount γ per token of what is still to come. Smaller credits early tokens less for a late "
        "reward; TRL has 1.",
    )
    lam: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Decay λ per token of later errors of the values. 1 trusts rewards (no bias, more noise), 0 the "
        "next value alone. TRL has 0.95.",
    )

    def compute(self, rollout: Rollout, values: Arrays) -> Arrays:
        made, returns = [], []
        for value, state, trained in zip(values, rollout.columns["values"], rollout.trained, strict=True):
            own = numpy.full(len(value), 0.0)
            own[trained] = self._estimate(value[trained], state[trained])
            made.append(own)
            known = trained & numpy.isfinite(own)  # without a reward there is nothing to correct the value by
            returns.append(numpy.where(known, own + state, state))
        rollout.columns["returns"] = returns
        return made

    def _estimate(self, rewards: ndarray, states: ndarray) -> ndarray:
        following = numpy.append(states[1:], 0.0)
        deltas = rewards + self.gamma * following - states
        total, found = 0.0, numpy.zeros(len(rewards))
        for place in range(len(rewards) - 1, -1, -1):
            total = deltas[place] + self.gamma * self.lam * total
            found[place] = total
        return found
