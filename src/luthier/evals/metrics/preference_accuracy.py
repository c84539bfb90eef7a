"""Preference accuracy."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from luthier.evals.base import Metric


class PreferenceAccuracy(Metric):
    """1 if the chosen answer of a pair is more probable than the rejected one, 0.5 for a tie, else 0.

    The model generates nothing. `normalize: tokens` compares mean log-probabilities per token, so that long answers are
    not at a disadvantage.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("pairs",)
    SETTINGS: ClassVar = ({}, {"normalize": "tokens"})

    normalize: Literal["none", "tokens"] = Field(
        "none",
        description="`none` compares summed log-probabilities of the two answers; `tokens` their means per token, "
        "which helps long answers against short ones.",
    )

    def of_pair(self, chosen: tuple[float, int], rejected: tuple[float, int]) -> float:
        chosen_logprob, rejected_logprob = self._normalized(*chosen), self._normalized(*rejected)
        if chosen_logprob == rejected_logprob:
            return 0.5
        return 1.0 if chosen_logprob > rejected_logprob else 0.0

    def _normalized(self, total: float, tokens: int) -> float:
        return total / tokens if self.normalize == "tokens" else total
