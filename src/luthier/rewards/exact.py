"""Exact match as a reward."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from luthier.rewards.base import Answer, Reward


class Exact(Reward):
    """1 for an answer that equals the gold answer, else 0; by default case and spacing do not count.

    None if the record has no gold answer.
    """

    SETTINGS: ClassVar = ({}, {"ignore_case": False}, {"ignore_space": False})
    EXAMPLES: ClassVar = (
        ({}, {"text": " The  cat", "gold": "the cat"}, 1.0),
        ({"ignore_case": False}, {"text": "The cat", "gold": "the cat"}, 0.0),
        ({}, {"text": "anything", "gold": ""}, None),
    )

    ignore_case: bool = Field(
        True,
        description="Whether texts that differ only in upper and lower case count as equal.",
    )
    ignore_space: bool = Field(
        True,
        description="Whether outer space is dropped and inner space collapsed to one before texts are compared.",
    )

    def score(self, answer: Answer) -> float | None:
        if not answer.gold:
            return None
        return float(self._normal(answer.text) == self._normal(answer.gold))

    def _normal(self, text: str) -> str:
        text = " ".join(text.split()) if self.ignore_space else text
        return text.casefold() if self.ignore_case else text
