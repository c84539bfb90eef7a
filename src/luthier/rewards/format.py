"""The form of an answer."""

from __future__ import annotations

import re
from functools import cache
from typing import ClassVar

from pydantic import Field, field_validator

from luthier.rewards.base import Answer, Reward


class Format(Reward):
    r"""1 for an answer that a regular expression matches from the first to the last character, else 0.

    A dot also matches line ends. For example, a box inside the reasoning (arXiv 2507.08267):
    `.*boxed\{.*?\}.*</think>.*`.
    """

    SETTINGS: ClassVar = ({"pattern": "a.*"}, {"pattern": "b.*"})
    EXAMPLES: ClassVar = (
        ({"pattern": ".*</think>.*"}, {"text": "thus\n</think>\n42"}, 1.0),
        ({"pattern": ".*</think>"}, {"text": "thus\n</think>\n42"}, 0.0),
    )

    pattern: str = Field(
        description="Regular expression (Python's) that must match the answer from its first to its last character; a "
        "dot matches line ends too.",
    )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            _compiled(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    def score(self, answer: Answer) -> float:
        return float(_compiled(self.pattern).fullmatch(answer.text) is not None)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.DOTALL)
