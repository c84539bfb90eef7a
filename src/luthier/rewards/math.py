"""Answers that are numbers or formulas."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from luthier.answers.mathematics import judge
from luthier.rewards.base import Answer, Reward


class Math(Reward):
    r"""1 for an answer that equals the gold answer as a number or formula, else 0; the metric `math` reads alike.

    The answer is in the last `\boxed{}`, else behind the last `####`, else behind the last "answer is", else the last
    formula or number. Fractions, roots, powers, tuples, intervals, sets and equations are read, in LaTeX or plain
    text, and compared exactly; two terms with variables are compared at several points. 50% equals 50 and 0.5.
    Known units must agree where both answers have one. What is no formula is compared as text.
    None if the gold answer holds no number, formula or box.
    """

    SETTINGS: ClassVar = ({}, {"tolerance": 0.01})
    EXAMPLES: ClassVar = (
        ({}, {"text": "half of 84 is 42.", "gold": "#### 42"}, 1.0),
        ({}, {"text": "\\boxed{\\frac{1}{2}}", "gold": "50%"}, 1.0),
        ({}, {"text": "\\boxed{-\\frac{1}{2}}", "gold": "1/2"}, 0.0),
        ({}, {"text": "\\boxed{(2, 1)}", "gold": "\\boxed{(1,2)}"}, 0.0),
        ({}, {"text": "so it is $\\sqrt{12}$.", "gold": "\\boxed{2\\sqrt{3}}"}, 1.0),
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
        return judge(answer.text, answer.gold, self.tolerance)
