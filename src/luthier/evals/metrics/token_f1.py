"""Word overlap."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import ClassVar

from luthier.evals.base import Metric
from luthier.types import Record

_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TokenF1(Metric):
    """F1 of the words that answer and reference share, as in SQuAD: without case, punctuation and English articles."""

    NEEDS: ClassVar[tuple[str, ...]] = ("generation",)
    PAPER: ClassVar[str] = "Rajpurkar et al. 2016, arXiv:1606.05250"
    RIGHT: ClassVar[float] = 0.5

    def score(self, prediction: str, record: Record, reference: str) -> float:
        answer, gold = _words(prediction), _words(reference)
        if not answer or not gold:
            return float(answer == gold)
        shared = (Counter(answer) & Counter(gold)).total()
        return 2 * shared / (len(answer) + len(gold))


def _words(text: str) -> list[str]:
    bare = text.lower().translate(_PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()
