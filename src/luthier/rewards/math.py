"""Answers that are numbers or short formulas."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import ClassVar

from pydantic import Field

from luthier.data.parsers import LATEX_FRACTION, boxed, number_and_rest
from luthier.rewards.base import Answer, Reward

PERCENT = re.compile(r"(?<!\s)\s*(?:\\?%|\bper ?cent\b)")  # from where a space begins: else long ones take for ever
FORMULA = re.compile(r"[\\^_{}()\[\]+*=<>]|\d\s*[-−]\s*\d|,\s|\d\s*[a-zA-Z]+\s*\d")
DRESSING = re.compile(r"\\(?:left|right|displaystyle|[,;:! ])|\\(?=\$)")
NAMED = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}")


class Math(Reward):
    r"""1 for an answer whose final number is that of the gold answer.

    The final number is in the last `\boxed{}`, else behind the last `####`, else the last one. Fractions, thousands
    separators, currency signs and powers of ten are read; 50% equals 50 and 0.5. A formula in a box is compared as
    text, without spaces and LaTeX's dressing. `tolerance` is relative to the gold number.
    None where the gold answer holds neither a number nor a box.
    """

    SETTINGS: ClassVar = ({}, {"tolerance": 0.01})
    EXAMPLES: ClassVar = (
        ({}, {"text": "half of 84 is 42.", "gold": "#### 42"}, 1.0),
        ({}, {"text": "\\boxed{\\frac{1}{2}}", "gold": "50%"}, 1.0),
        ({}, {"text": "42, not 43", "gold": "42"}, 0.0),
        ({"tolerance": 0.01}, {"text": "3.14", "gold": "3.1416"}, 1.0),
        ({}, {"text": "42", "gold": "no number"}, None),
    )

    tolerance: float = Field(
        0.0,
        ge=0,
        description="Deviation from the gold number that still counts as equal, relative to it: at 0.01, 3.14 equals "
        "3.1416. 0 asks for the same number.",
    )

    def score(self, answer: Answer) -> float | None:
        gold, given = boxed(answer.gold), boxed(answer.text)
        wanted = _numbers(answer.gold) if gold is None else _boxed_numbers(gold)
        if not wanted:
            return None if gold is None else float(given is not None and _bare(given) == _bare(gold))
        found = _numbers(answer.text) if given is None else _boxed_numbers(given)
        return float(any(self._equal(one, other) for one in found for other in wanted))

    def _equal(self, one: Decimal, gold: Decimal) -> bool:
        return abs(one - gold) <= Decimal(str(self.tolerance)) * abs(gold)


def _numbers(text: str) -> list[Decimal]:
    """What the final number of a text may mean: one of percent is a number and a share."""
    found = number_and_rest(text)
    if found is None:
        return []
    number, behind = found
    return [number, number / 100] if PERCENT.match(behind) else [number]


def _boxed_numbers(text: str) -> list[Decimal]:
    """As `_numbers`, of what a box holds; none where it is a formula."""
    plain = LATEX_FRACTION.sub(r" \1/\2 ", NAMED.sub(r" \1", DRESSING.sub("", text)))
    return [] if FORMULA.search(PERCENT.sub("", plain)) else _numbers(plain)


def _bare(text: str) -> str:
    """A formula without spaces, sizes and marks of text."""
    text = NAMED.sub(r"\1", DRESSING.sub("", text)).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return re.sub(r"[\s$]", "", text).rstrip(".")
