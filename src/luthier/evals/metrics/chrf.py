"""Character n-gram F-score."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from pydantic import Field

from luthier.evals.base import Metric
from luthier.types import Record


class Chrf(Metric):
    """chrF: F-score of the character n-grams that answer and reference share; recall weighs beta times precision.

    F = (1 + beta²) P R / (beta² P + R), where P and R are means over the n-gram orders 1 to `order` that both texts are
    long enough for. Spaces are removed.

    Source: Popović 2015, W15-3049.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("generation",)
    PAPER: ClassVar[str] = "Popović 2015, W15-3049"
    RIGHT: ClassVar[float] = 0.5
    SETTINGS: ClassVar = ({}, {"order": 3}, {"beta": 1.0})

    order: int = Field(
        6,
        ge=1,
        description="Longest n-gram of characters that is counted, up to the length of the shorter text. 6 is that of "
        "standard chrF.",
    )
    beta: float = Field(
        2.0,
        gt=0,
        description="Weight of recall against precision. Larger asks more that nothing of the reference is missing; 2 "
        "gives chrF2, sacrebleu's default.",
    )

    def score(self, prediction: str, record: Record, reference: str) -> float:
        answer, gold = "".join(prediction.split()), "".join(reference.split())
        if answer == gold:
            return 1.0
        orders = range(1, min(self.order, len(answer), len(gold)) + 1)
        if not orders:
            return 0.0
        precision, recall = 0.0, 0.0
        for size in orders:
            shared = (_grams(answer, size) & _grams(gold, size)).total()
            precision += shared / (len(answer) - size + 1) / len(orders)
            recall += shared / (len(gold) - size + 1) / len(orders)
        weight = self.beta**2
        total = weight * precision + recall
        return (1 + weight) * precision * recall / total if total else 0.0


def _grams(text: str, size: int) -> Counter[str]:
    return Counter(text[start : start + size] for start in range(len(text) - size + 1))
