"""Multiple choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from luthier.evals.base import Metric
from luthier.records.choices import Naming
from luthier.types import Record


class Choice(Metric):
    """1 if the reference is the most probable of the record's `choices`, else 0; the model generates nothing.

    `normalize` divides each choice's summed log-probability by its number of tokens or characters, so that long
    choices are not at a disadvantage. The reference names the right choice by its text, its letter or its index.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("choices",)
    SETTINGS: ClassVar = ({}, {"normalize": "tokens"}, {"normalize": "characters"})
    # The evaluation reads `answers` before it asks for a pick.
    SAME_RESULT: ClassVar[tuple[str, ...]] = ("answers",)

    normalize: Literal["none", "tokens", "characters"] = Field(
        "none",
        description="Divisor of a choice's summed log-probability: `none`, its `tokens` or its `characters`, which "
        "helps long choices against short ones.",
    )
    answers: Naming = Field(
        "auto",
        description="How references name the right choice: by its `text`, `letter`, `index` (from 0) or `number` (from "
        "1). `auto` takes the first of these that fits every record.",
    )

    @property
    def naming(self) -> Naming:
        return self.answers

    @property
    def fields(self) -> tuple[str, ...]:
        return ("choices",)

    def pick(self, logprobs: Sequence[float], choices: Sequence[str], tokens: Sequence[int]) -> int:
        lengths = {
            "none": [1] * len(choices),
            "tokens": list(tokens),
            "characters": [len(choice) for choice in choices],
        }[self.normalize]
        normalized = [logprob / length for logprob, length in zip(logprobs, lengths, strict=True)]
        # The alphabet settles ties, of which bfloat16 has many: data sets often list the right answer first.
        return max(range(len(choices)), key=lambda index: (normalized[index], choices[index]))

    def score(self, prediction: str, record: Record, reference: str) -> float:
        return float(prediction.strip() == reference.strip())
