"""Preference accuracy."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from luthier.evals.base import Metric


class PreferenceAccuracy(Metric):
    """1 when the chosen answer of a pair is more probable than the rejected one, 0.5 for a tie; nothing is generated.

    `normalize: tokens` compares the mean log-probability per token, so that long answers are not at a disadvantage.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("pairs",)
    SETTINGS: ClassVar = ({}, {"normalize": "tokens"})

    normalize: Literal["none", "tokens"] = Field(
        "none",
        description="`none` compares summed log-probabilities of the two answers; `tokens` their means per token, "
        "which helps long answers against short ones.",
    )

    def of_pair(self, chosen: tuple[float, int], rejected: tuple[float, int]) -> float:
        one, other = (total / (count if self.normalize == "tokens" else 1) for total, count in (chosen, rejected))
        return 1.0 if one > other else 0.5 if one == other else 0.0
