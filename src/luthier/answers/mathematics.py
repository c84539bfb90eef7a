r"""The judge of mathematical answers, for the metric and the reward `math`."""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import product

from luthier.answers.final import answer_of
from luthier.answers.reading import read_answer, same_answer

_MATHEMATICAL = re.compile(r"\d|[\\=+*/^<>½√π∞∅]|boxed|####|(?<!\w)[a-z]\s*[-−]\s*[a-z](?!\w)")
"""What every gold answer has in it: a word or letter by itself is one only in a box or behind the mark."""


def judge(text: str, gold: str, tolerance: float = 0.0) -> float | None:
    """1 if a text gives the answer that the gold text gives, else 0; None if the gold text gives none.

    Args:
        tolerance: deviation of a number that counts as equal, relative to the gold number.
    """
    gold_answer = answer_of(gold) if _MATHEMATICAL.search(gold) else ""
    if not gold_answer:
        return None
    answer = answer_of(text)
    if not answer:
        return 0.0
    # str() first: Fraction(0.1) is the float's binary number, not the 0.1 that the recipe wrote.
    allowed = Fraction(str(tolerance))
    pairs = product(read_answer(answer), read_answer(gold_answer))
    return float(any(same_answer(reading, gold_reading, allowed) for reading, gold_reading in pairs))
