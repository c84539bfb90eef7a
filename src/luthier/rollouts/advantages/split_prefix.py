"""Prefix-RFT's other estimator: prefixes and the tokens after them are credited separately."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy
from numpy import ndarray
from pydantic import Field

from luthier.rollouts.advantages._statistics import mean_and_std
from luthier.rollouts.base import Advantage, Arrays, Rollout


class SplitPrefix(Advantage):
    """Answers are compared only with answers of the same prefix, and a prefix with the answers without one (the free).

    Sampled tokens: R - mean of the group's answers with the same prefix. If no other answer has the prefix, they get 0,
    or with `alone: reward` the reward. Prefix tokens: (R - mean of the free answers) / number of answers with this
    prefix; 0 where the group has no free answer.

    The released code of arXiv 2507.01679 puts the credit of the sampled tokens in place of R: `prefix: centred`. Its
    first variant is then `alone: reward`, its second `alone: zero`: there, the prefix of a single answer is credited
    with minus the mean of the free answers whatever its answer earned. With one answer per prefix and
    `alone: reward`, both options of `prefix` are the same. The paper's own form is `center`.
    """

    PAPER: ClassVar[str] = "arXiv 2507.01679"
    COMPARES: ClassVar = True
    TAKES: ClassVar = "rewards"
    SETTINGS: ClassVar = ({}, {"alone": "reward"}, {"prefix": "centred"})

    alone: Literal["zero", "reward"] = Field(
        "zero",
        description="Credit of the sampled tokens if no other answer has the same prefix: `zero`, or `reward`, the "
        "answer's reward without a baseline.",
    )
    prefix: Literal["reward", "centred"] = Field(
        "reward",
        description="Credit of a prefix, before the mean reward of the answers without one is subtracted: the answer's"
        " `reward`, or (the released code) its reward `centred` among the answers with this prefix.",
    )

    def compute(self, rollout: Rollout, values: Arrays) -> Arrays:
        rewards = rollout.totals(values)
        advantages = rollout.spread(rewards)
        for members in rollout.by_group(self.kind):
            # NaN where the group has no free answer; `credit` turns it into 0.
            free = mean_and_std(rewards[[index for index in members if not rollout.forced[index].any()]])[0]
            for prefix, sharing in self._by_prefix(rollout, members).items():
                mean = mean_and_std(rewards[sharing])[0]
                single = len(sharing) == 1 and bool(prefix)
                for index in sharing:
                    if not single:
                        sampled = rewards[index] - mean
                    else:
                        sampled = rewards[index] if self.alone == "reward" else 0.0
                    advantages[index][:] = sampled
                    of_prefix = sampled if self.prefix == "centred" else rewards[index]
                    advantages[index][rollout.forced[index]] = (of_prefix - free) / len(sharing)
        return advantages

    def _by_prefix(self, rollout: Rollout, members: ndarray) -> dict[tuple[int, ...], list[int]]:
        """The indices of a group's answers by the token ids of their prefix, which are none for free answers."""
        trajectories = [member.trajectory for member in rollout.members]
        indices: dict[tuple[int, ...], list[int]] = {}
        for index in members:
            ids = numpy.asarray(trajectories[index].ids)[rollout.forced[index]]
            indices.setdefault(tuple(ids.tolist()), []).append(int(index))
        return indices
