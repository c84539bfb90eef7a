"""A penalty on leaving the reference, inside the reward."""

from __future__ import annotations

from typing import ClassVar

import numpy
from pydantic import Field

from luthier.rollouts.base import Advantage, Arrays, Rollout


class KlPenalty(Advantage):
    """r_t = r_t - beta (log p_old - log p_reference) of each trained token; the reference is the initial model.

    In the reward, this estimator of KL(policy || reference) is unbiased; in a loss its gradient is 0 on average.
    A later link that credits complete answers sums the penalty over tokens; `gae` and `returns` credit it per token.

    Source: arXiv 2402.14740.
    """

    PAPER: ClassVar[str] = "arXiv 2402.14740"
    READS: ClassVar = ("old_logprobs", "logprobs:initial")
    TAKES: ClassVar = "rewards"
    GIVES: ClassVar = "the same"
    SETTINGS: ClassVar = ({}, {"beta": 0.5})

    beta: float = Field(
        0.05,
        ge=0,
        description="Reward subtracted per nat of log p_old - log p_initial, token by token. Larger keeps the policy"
        " closer to the initial model; TRL's RLOO and PPO have 0.05.",
    )

    def compute(self, rollout: Rollout, values: Arrays) -> Arrays:
        old, reference = rollout.columns["old_logprobs"], rollout.columns["logprobs:initial"]
        # Forced tokens that are not trained were not chosen by the policy, so they cost nothing.
        penalised = []
        for index, (rewards, trained) in enumerate(zip(values, rollout.trained, strict=True)):
            penalised.append(rewards - self.beta * numpy.where(trained, old[index] - reference[index], 0.0))
        return penalised
