"""Brevity compared with the other answers to the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from luthier.parts import part_field
from luthier.rewards._measure import is_right, length_of
from luthier.rewards.base import Answer, Reward


class Length(Reward):
    """0.5 for the shortest answer of the group down to -0.5 for the longest; a wrong answer gets at most 0.

    lambda = 0.5 - (L - L_min) / (L_max - L_min) over all answers of the group; 0 if all lengths are equal. An answer is
    right if the reward `right` gives it 1 or more. If `right` does not apply to an answer, neither does this reward.
    `unit`: the text of arXiv 2507.08267 counts tokens, its code characters.

    Source: arXiv 2501.12599 (length penalty).
    """

    PAPER: ClassVar[str] = "arXiv 2501.12599"
    SETTINGS: ClassVar = ({}, {"right": "exact"}, {"unit": "characters"})
    EXAMPLES: ClassVar = (
        (
            {},
            [
                {"text": "4", "gold": "4", "tokens": 10},
                {"text": "4", "gold": "4", "tokens": 20},
                {"text": "5", "gold": "4", "tokens": 18},
                {"text": "5", "gold": "4", "tokens": 12},
            ],
            [0.5, -0.5, -0.3, 0.0],
        ),
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

    def score_group(self, answers: Sequence[Answer]) -> list[float | None]:
        lengths = [length_of(answer, self.unit) for answer in answers]
        shortest, longest = min(lengths), max(lengths)
        values: list[float | None] = []
        for length, right in zip(lengths, is_right(self.right, answers), strict=True):
            value = 0.5 - (length - shortest) / (longest - shortest) if longest > shortest else 0.0
            values.append(None if right is None else value if right else min(0.0, value))
        return values
