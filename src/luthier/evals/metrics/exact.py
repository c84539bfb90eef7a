"""Exact match."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from luthier.evals.base import Metric
from luthier.types import Record


class Exact(Metric):
    """1 if the answer equals the reference, else 0; by default case and spacing do not count."""

    NEEDS: ClassVar[tuple[str, ...]] = ("generation",)
    EXAMPLES: ClassVar = (
        ({}, {"text": " The  Cat", "gold": "the cat"}, 1.0),
        ({"ignore_case": False}, {"text": "The cat", "gold": "the cat"}, 0.0),
    )
    SETTINGS: ClassVar = ({}, {"ignore_case": False}, {"ignore_space": False})

    ignore_case: bool = Field(
        True,
        description="Whether texts that differ only in upper and lower case count as equal.",
    )
    ignore_space: bool = Field(
        True,
        description="Whether outer space is dropped and inner space collapsed to one before texts are compared.",
    )

    def score(self, prediction: str, record: Record, reference: str) -> float:
        return float(self._normal(prediction) == self._normal(reference))

    def _normal(self, text: str) -> str:
        text = " ".join(text.split()) if self.ignore_space else text
        return text.casefold() if self.ignore_case else text
