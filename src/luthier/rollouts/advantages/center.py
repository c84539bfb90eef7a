"""Dr.GRPO: rewards relative to the group."""

from __future__ import annotations

from typing import ClassVar

from numpy import ndarray

from luthier.rollouts.advantages._statistics import less_group_means
from luthier.rollouts.base import Advantage, Arrays, Rollout


class Center(Advantage):
    """A_i = R_i - mean over the answers to one prompt.

    Source: arXiv 2503.20783.
    """

    PAPER: ClassVar[str] = "arXiv 2503.20783"
    COMPARES: ClassVar = True
    TAKES: ClassVar = "rewards"

    def compute(self, rollout: Rollout, values: Arrays) -> ndarray:
        return less_group_means(rollout.totals(values), rollout.by_group(self.kind))
