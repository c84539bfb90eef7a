"""Mathematical answers."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from luthier.answers.mathematics import judge
from luthier.evals.base import Metric
from luthier.types import Record


class Math(Metric):
    r"""1 if the answer equals the reference as a number or formula, else 0; the reward `math` reads alike.

    The answer is in the last `\boxed{}`, else behind the last `####`, else behind the last "answer is", else the last
    formula or number. Fractions, roots, powers, tuples, intervals, sets and equations are read, in LaTeX or plain
    text, and compared exactly; two terms with variables are compared at several points. 50% equals 50 and 0.5.
    Known units must agree where both answers have one. What is no formula is compared as text.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("generation",)
    EXAMPLES: ClassVar = (
        ({}, {"text": "So it is $\\frac{\\sqrt{2}}{2}$.", "gold": "\\boxed{1/\\sqrt2}"}, 1.0),
        ({}, {"text": "\\boxed{-\\frac{1}{2}}", "gold": "\\boxed{\\frac{1}{2}}"}, 0.0),
        ({}, {"text": "\\boxed{[0,1)}", "gold": "\\boxed{(0,1)}"}, 0.0),
        ({"tolerance": 0.01}, {"text": "3.14", "gold": "$\\pi$"}, 1.0),
    )
    SETTINGS: ClassVar = ({}, {"tolerance": 0.01})

    tolerance: float = Field(
        0.0,
        ge=0,
        description="Deviation from the reference's number that still counts as equal, relative to it: at 0.01, 3.14 "
        "equals 3.1416. 0 asks for the same number.",
    )

    def score(self, prediction: str, record: Record, reference: str) -> float:
        score = judge(prediction, reference, self.tolerance)
        if score is None:
            raise ValueError(f"its reference holds no number, formula or box: {reference[:80]!r}")
        return score
