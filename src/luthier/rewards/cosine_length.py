"""Short right answers are worth more, short wrong answers less."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from luthier.parts import part_field
from luthier.rewards._measure import is_right, length_of
from luthier.rewards.base import Answer, Reward


class CosineLength(Reward):
    """Half a cosine over the length, from the value of an empty answer to the value at `limit` units and beyond.

    r = end + (start - end) (1 + cos(pi t)) / 2 with t = min(1, L / limit); (start, end) is `right_range` for right
    answers and `wrong_range` for wrong ones. An answer is right if the reward `right` gives it 1 or more. If `right`
    does not apply to an answer, neither does this reward.

    Source: arXiv 2502.03373; limits and ranges of arXiv 2507.08267, whose code counts characters.
    """

    PAPER: ClassVar[str] = "arXiv 2502.03373"
    SETTINGS: ClassVar = (
        {"limit": 100},
        {"limit": 50},
        {"limit": 100, "right": "exact"},
        {"limit": 100, "unit": "characters"},
        {"limit": 100, "right_range": (1.0, 0.5)},
        {"limit": 100, "wrong_range": (0.0, 0.0)},
    )
    EXAMPLES: ClassVar = (
        (
            {"limit": 100},
            [
                {"text": "4", "gold": "4", "tokens": 0},
                {"text": "4", "gold": "4", "tokens": 50},
                {"text": "5", "gold": "4", "tokens": 100},
                {"text": "5", "gold": "none", "tokens": 100},
            ],
            [1.0, 0.55, -0.1, None],
        ),
    )

    limit: int = Field(
        gt=0,
        description="Length in `unit` at which the value reaches its end; longer answers get the same. Set it to the "
        "longest answer; the code of arXiv 2507.08267 has 30,000 characters.",
    )
    right: Annotated[Any, part_field("reward")] = Field(
        "math",
        validate_default=True,
        description="Reward that says which answers are right (a value of 1 or more). If it does not apply to an "
        "answer, neither does this reward.",
    )
    unit: Literal["tokens", "characters"] = Field(
        "tokens",
        description="What lengths are counted in: `tokens`, as arXiv 2507.08267 writes, or `characters`, as its code "
        "does.",
    )
    right_range: tuple[float, float] = Field(
        (1.0, 0.1),
        description="Values of a right answer when empty and when `limit` long. Further apart pays more for brevity.",
    )
    wrong_range: tuple[float, float] = Field(
        (-1.0, -0.1),
        description="Values of a wrong answer when empty and when `limit` long. By default a short wrong answer costs "
        "most.",
    )

    def score_group(self, answers: Sequence[Answer]) -> list[float | None]:
        values: list[float | None] = []
        for answer, right in zip(answers, is_right(self.right, answers), strict=True):
            values.append(None if right is None else self._value(length_of(answer, self.unit), right))
        return values

    def _value(self, length: int, right: bool) -> float:
        start, end = self.right_range if right else self.wrong_range
        return end + (start - end) * (1 + math.cos(math.pi * min(1.0, length / self.limit))) / 2
