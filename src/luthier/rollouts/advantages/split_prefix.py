"""Prefix-RFT's other estimator: prefixes and what follows them are credited apart."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy
from numpy import ndarray
from pydantic import Field

from luthier.rollouts.advantages._statistics import mean_and_std
from luthier.rollouts.base import Advantage, Arrays, Rollout


class SplitPrefix(Advantage):
    """Answers are compared only with those that began alike; a prefix with the answers that began with none.

    What was sampled: R - mean of the answers of the group with the same prefix. One that is alone with its prefix gets
    0, or with `alone: reward` its reward. A prefix: (R - mean of the answers without a prefix) / number of answers
    with it; where all answers have one, 0.

    The released code of arXiv 2507.01679 takes, in place of R, what the answer was credited with: `prefix: centred`.
    Its first variant is then `alone: reward`, its second `alone: zero`, in which a prefix that one answer has is
    credited with minus the mean of the free answers whatever it earned. With one answer per prefix and
    `alone: reward` both values of `prefix` are the same. The paper's own form is `center`.
    """

    PAPER: ClassVar[str] = "arXiv 2507.01679"
    COMPARES: ClassVar = True
    TAKES: ClassVar = "rewards"
    SETTINGS: ClassVar = ({}, {"alone": "reward"}, {"prefix": "centred"})

    alone: Literal["zero", "reward"] = Field(
        "zero",
        description="Credit of the sampled tokens where no other answer has the same prefix: `zero`, or `reward`, the "
        "answer's own without a baseline.",
    )
    prefix: Literal["reward", "centred"] = Field(
        "reward",
        description="What a prefix is credited with, less the mean reward of the answers without one: the answer's"
        " reward, or (the released code) its reward already centred among the answers with this prefix.",
    )

    def compute(self, rollout: Rollout, values: Arrays) -> Arrays:
        rewards = rollout.totals(values)
        made = rollout.spread(rewards)
        for places in rollout.by_group(self.kind):
            for prefix, alike in self._by_prefix(rollout, places).items():
                mean = mean_and_std(rewards[alike])[0]
                free = mean_and_std(rewards[[i for i in places if not rollout.forced[i].any()]])[0]
                for index in alike:
                    single = len(alike) == 1 and bool(prefix)
                    own = (rewards[index] if self.alone == "reward" else 0.0) if single else rewards[index] - mean
                    made[index][:] = own
                    credited = own if self.prefix == "centred" else rewards[index]
                    made[index][rollout.forced[index]] = (credited - free) / len(alike)
        return made

    def _by_prefix(self, rollout: Rollout, places: ndarray) -> dict[tuple[int, ...], list[int]]:
        members = rollout.members
        found: dict[tuple[int, ...], list[int]] = {}
        for index in places:
            ids = numpy.asarray(members[index].trajectory.ids)[rollout.forced[index]]
            found.setdefault(tuple(ids.tolist()), []).append(int(index))
        return found
