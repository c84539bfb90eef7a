"""Mean 0 and variance 1 over the rollout."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy
from pydantic import Field

from luthier.rollouts.advantages._statistics import mean_and_std
from luthier.rollouts.base import Advantage, Arrays, Rollout


class Whiten(Advantage):
    """(A - mean) / sqrt(variance + epsilon) over all trained tokens of the rollout; the variance is unbiased.

    `shift: false` keeps the mean (what PPO does with rewards); `over: answers` counts each answer once, by its first
    trained token. The link accepts rewards or advantages, and returns the same kind.

    Source: arXiv 2501.03262.
    """

    PAPER: ClassVar[str] = "arXiv 2501.03262"
    GIVES: ClassVar = "the same"
    SETTINGS: ClassVar = ({}, {"shift": False}, {"over": "answers"}, {"epsilon": 0.5})

    shift: bool = Field(
        True,
        description="Whether the mean is subtracted. False only scales, as PPO does with rewards.",
    )
    over: Literal["tokens", "answers"] = Field(
        "tokens",
        description="Mean and variance are over all trained `tokens`, so that long answers count more, or over "
        "`answers`, which count once each.",
    )
    epsilon: float = Field(
        1e-8,
        gt=0,
        description="Number added to the variance before the square root, against a division by 0. Larger damps "
        "advantages that hardly differ.",
    )

    def compute(self, rollout: Rollout, values: Arrays) -> Arrays:
        counted = [tokens[trained] for tokens, trained in zip(values, rollout.trained, strict=True)]
        if self.over == "answers":
            counted = [tokens[:1] for tokens in counted]
        numbers = numpy.concatenate(counted)
        finite = numbers[numpy.isfinite(numbers)]
        if len(finite) < 2:  # no variance to divide by
            return values
        mean, std = mean_and_std(finite)
        scale = numpy.sqrt(std**2 + self.epsilon)  # epsilon inside the root, unlike in `group_norm`
        base = 0.0 if self.shift else mean
        whitened = []
        for tokens, trained in zip(values, rollout.trained, strict=True):
            whitened.append(numpy.where(trained, (tokens - mean) / scale + base, 0.0))
        return whitened
