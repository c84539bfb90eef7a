"""Perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from luthier.evals.base import Metric


class Perplexity(Metric):
    """exp of the mean negative log-probability per target token; lower is better, and it never ranks methods.

    An item's score is its mean negative log-probability per target token, in nats.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("logprobs",)
    RANKS: ClassVar[bool] = False  # objectives other than maximum likelihood trade perplexity for accuracy
    RIGHT: ClassVar[float] = 1e999  # infinite: no item counts as right

    def of_logprobs(self, total: float, targets: int) -> float:
        return -total / targets

    def combine(self, scores: Sequence[float], weights: Sequence[int]) -> float:
        total = sum(score * weight for score, weight in zip(scores, weights, strict=True))
        return math.exp(total / sum(weights))
