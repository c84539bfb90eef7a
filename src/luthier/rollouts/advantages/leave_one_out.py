"""RLOO: each reward against the mean of the others."""

from __future__ import annotations

from typing import ClassVar

import numpy
from numpy import ndarray

from luthier.rollouts.base import Advantage, Arrays, Rollout


class LeaveOneOut(Advantage):
    """A_i = R_i - mean of the other rewards of the group, which is G / (G - 1) times `center`.

    The paper's penalty on the distance to the reference is a link before this one: `[kl_penalty, leave_one_out]`.

    Source: arXiv 2402.14740.
    """

    PAPER: ClassVar[str] = "arXiv 2402.14740"
    COMPARES: ClassVar = True
    TAKES: ClassVar = "rewards"

    def compute(self, rollout: Rollout, values: Arrays) -> ndarray:
        rewards = rollout.totals(values)
        for members in rollout.by_group(self.kind):
            rewarded = members[numpy.isfinite(rewards[members])]
            # Equal rewards get exactly 0; by the formula, rounding would leave a difference in the last bit.
            if len(rewarded) > 1 and rewards[rewarded].min() < rewards[rewarded].max():
                others = (rewards[rewarded].sum() - rewards[rewarded]) / (len(rewarded) - 1)
                rewards[rewarded] = rewards[rewarded] - others
            else:
                rewards[rewarded] = 0.0
        return rewards
