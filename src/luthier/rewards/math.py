"""Answers that are numbers or short formulas."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import ClassVar

from pydantic import Field

from luthier.data.parsers import LATEX_FRACTION, boxed, number_and_rest
from luthier.rewards.base import Answer, Reward

# (?<!\s) starts a match at the beginning of a run of spaces only; without it long runs take quadratic time.
PERCENT = re.compile(r"(?<!\s)\s*(?:\\?%|\bper ?cent\b)")
FORMULA = re.compile(r"[\\^_{}()\[\]+*=<>]|\d\s*[-−]\s*\d|,\s|\d\s*[a-zA-Z]+\s*\d")
LAYOUT = re.compile(r"\\(?:left|right|displaystyle|[,;:! ])|\\(?=\$)")
TEXT_COMMAND = re.compile(r"\\(?:text|mathrm|textbf)\{([^{}]*)\}")


class Math(Reward):
    r"""1 for an answer whose final number equals the final number of the gold answer, else 0.

    The final number is in the last `\boxed{}`, else after the last `####`, else the last number of the text.
    Fractions, thousands separators, currency signs and powers of ten are read; 50% equals 50 and 0.5. A formula in a
    box is compared as text, without spaces and LaTeX's commands of layout. `tolerance` is relative to the gold number.
    None if the gold answer holds neither a number nor a box.
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
        gold_box, answer_box = boxed(answer.gold), boxed(answer.text)
        gold_numbers = _numbers(answer.gold) if gold_box is None else _boxed_numbers(gold_box)
        if not gold_numbers:
            if gold_box is None:
                return None
            return float(answer_box is not None and _bare(answer_box) == _bare(gold_box))
        numbers = _numbers(answer.text) if answer_box is None else _boxed_numbers(answer_box)
        return float(any(self._equal(number, gold) for number in numbers for gold in gold_numbers))

    def _equal(self, number: Decimal, gold: Decimal) -> bool:
        # str() first: Decimal(0.1) is the float's binary value, not the 0.1 that the recipe wrote.
        return abs(number - gold) <= Decimal(str(self.tolerance)) * abs(gold)


def _numbers(text: str) -> list[Decimal]:
    """The readings of a text's final number: 50% may mean 50 or 0.5. Empty if the text has no number."""
    final = number_and_rest(text)
    if final is None:
        return []
    number, rest = final
    return [number, number / 100] if PERCENT.match(rest) else [number]


def _boxed_numbers(text: str) -> list[Decimal]:
    """As `_numbers`, for the content of a box; empty if the content is a formula."""
    # The space separates a number from its unit: `12\text{kg}` becomes `12 kg`.
    unformatted = LATEX_FRACTION.sub(r" \1/\2 ", TEXT_COMMAND.sub(r" \1", LAYOUT.sub("", text)))
    return [] if FORMULA.search(PERCENT.sub("", unformatted)) else _numbers(unformatted)


def _bare(text: str) -> str:
    r"""A formula without spaces, commands of layout and `\text`."""
    text = TEXT_COMMAND.sub(r"\1", LAYOUT.sub("", text)).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    return re.sub(r"[\s$]", "", text).rstrip(".")
