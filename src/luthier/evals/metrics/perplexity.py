"""Perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from luthier.evals.base import Metric


class Perplexity(Metric):
    """exp of the mean negative log-probability per target token: shown, never ranks, lower is better.

    An item's own value is its mean negative log-probability per token, in nats. Objectives other than
    maximum likelihood trade it for accuracy, so it must not choose between them.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("logprobs",)
    RANKS: ClassVar[bool] = False
    RIGHT: ClassVar[float] = 1e999  # infinite: no item counts as right

    def of_logprobs(self, total: float, targets: int) -> float:
        return -total / targets

    def combine(self, scores: Sequence[float], weights: Sequence[int]) -> float:
        total = sum(score * weight for score, weight in zip(scores, weights, strict=True))
        return math.exp(total / sum(weights))
