"""Numeric answers."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from luthier.data.parsers import names_two_numbers, parse_number, unclear_number
from luthier.evals.base import Metric
from luthier.types import Record


class Number(Metric):
    """1 if the final numbers of answer and reference are equal, else 0; 1,200 equals 1200.0.

    Digits such as 3,5, which are a decimal number to some and two numbers to others, equal only the same digits. An
    answer that leaves two numbers open (`5 or 6`) is wrong unless the reference does.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("generation",)
    EXAMPLES: ClassVar = (
        ({}, {"text": "It is 1,200.0", "gold": "1200"}, 1.0),
        ({}, {"text": "$-\\frac{1}{2}$", "gold": "1/2"}, 0.0),
        ({"after": "####"}, {"text": "#### 3, not 4", "gold": "#### 4"}, 0.0),
    )
    SETTINGS: ClassVar = ({}, {"after": "####"})

    after: str | None = Field(
        None,
        description="Mark in front of the number, such as `Answer:`; an answer without it scores 0. Null takes the "
        "number behind the last `####`, else the last one.",
    )

    def score(self, prediction: str, record: Record, reference: str) -> float:
        gold = parse_number(reference, self.after)
        if gold is None and self.after is None and (unclear := unclear_number(reference)) is not None:
            return float(unclear_number(prediction) == unclear)
        if gold is None:
            where = f" after {self.after!r}" if self.after else ""
            raise ValueError(f"its reference holds no number{where}: {reference[:80]!r}")
        if self.after is None and names_two_numbers(prediction) and not names_two_numbers(reference):
            return 0.0
        return float(parse_number(prediction, self.after) == gold)
