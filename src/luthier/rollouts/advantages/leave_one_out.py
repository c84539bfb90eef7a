"""RLOO: each reward against the mean of the others."""

from __future__ import annotations

from typing import ClassVar

import numpy
from numpy import ndarray

from luthier.rollouts.base import Advantage, Arrays, Rollout


class LeaveOneOut(Advantage):
    """A_i = R_i - mean of the other rewards of the group, which is G / (G - 1) times `center`.

    The paper's penalty for leaving the reference is a link before this one: `[kl_penalty, leave_one_out]`.

    Source: arXiv 2402.14740.
    """

    PAPER: ClassVar[str] = "arXiv 2402.14740"
    COMPARES: ClassVar = True
    TAKES: ClassVar = "rewards"

    def compute(self, rollout: Rollout, values: Arrays) -> ndarray:
        rewards = rollout.totals(values)
        for places in rollout.by_group(self.kind):
            there = places[numpy.isfinite(rewards[places])]
            if len(there) > 1 and rewards[there].min() < rewards[there].max():  # equal rewards: 0 to the last bit
                others = (rewards[there].sum() - rewards[there]) / (len(there) - 1)
                rewards[there] = rewards[there] - others
            else:
                rewards[there] = 0.0
        return rewards
