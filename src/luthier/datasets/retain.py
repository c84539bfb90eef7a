"""General questions that measure what a model forgets while it learns something else."""

from __future__ import annotations

import itertools
import random
from typing import Any, ClassVar

from pydantic import Field

from luthier.datasets._retain_items import NUMBERS, QUESTIONS
from luthier.datasets.base import Dataset, as_record
from luthier.types import Record


class Retain(Dataset):
    """Short general questions that a small instruct model mostly answers: a measure of forgetting.

    Facts, comparisons, topics and kinds are multiple choice, scored by log-probability. Questions about numbers are
    answered by generation, which also shows a model that answers everything in its new format. Every record names
    its metric. `count` and `seed` choose a subset.
    """

    SETTINGS: ClassVar = ({"count": 40}, {"count": 30}, {"count": 40, "seed": 1}, {})

    count: int | None = Field(
        None,
        ge=1,
        description="Number of questions drawn from the fixed set. Null takes all; fewer are quicker to ask and "
        "measure less exactly.",
    )
    seed: int = Field(0, description="Seed of the choice of `count` questions. Without `count` it changes nothing.")

    def records(self) -> list[Record]:
        """Records of prompt, completion, metric and topic; those of multiple choice also have `choices`."""
        fields = [*choices(), *numbers(), *sums()]
        if self.count is not None and self.count < len(fields):
            fields = random.Random(f"{self.kind}:{self.seed}").sample(fields, self.count)
        return [as_record(columns, f"{self.kind}:{number}") for number, columns in enumerate(fields, 1)]


def choices() -> list[dict[str, Any]]:
    """The multiple-choice questions of `_retain_items`; the first answer of a line is the right one."""
    questions = []
    for topic, (lines, wording) in QUESTIONS.items():
        for line in lines.strip().splitlines():
            question, *answers = (piece.strip() for piece in line.split(" | "))
            prompt = wording.format(question)
            questions.append(
                {"prompt": prompt, "completion": answers[0], "choices": answers, "metric": "choice", "topic": topic}
            )
    return questions


def numbers() -> list[dict[str, Any]]:
    """Questions that a number answers, scored on the last number of the model's text."""
    pairs = [line.split(" | ") for line in NUMBERS.strip().splitlines()]
    return [_number(question, answer, "numbers") for question, answer in pairs]


def sums() -> list[dict[str, Any]]:
    """Twelve different sums of two small numbers."""
    # A seed of their own: `count` and `seed` choose among the same twelve.
    pairs = [*itertools.product(range(2, 10), repeat=2)]
    chosen = random.Random("retain:sums").sample(pairs, 12)
    return [_number(f"What is {first} + {second}?", str(first + second), "sums") for first, second in chosen]


def _number(prompt: str, answer: str, topic: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, "metric": "number", "topic": topic}
