"""What a model should not forget while it learns something else."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from pydantic import Field

from luthier.datasets._retain_items import NUMBERS, QUESTIONS
from luthier.datasets.base import Dataset, as_record
from luthier.types import Record


class Retain(Dataset):
    """Short general questions that a small instruct model mostly answers: what training should leave intact.

    Facts, comparisons, topics and kinds are scored as multiple choice by log-probability; questions
    whose answer is a number are generated, so that a model that now answers everything in its new format
    is caught too. Every record names its metric. `count` takes a part, the same for the same `seed`.
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
        """Prompt, completion, metric, topic and, for multiple choice, the choices."""
        fields = [*choices(), *numbers(), *sums()]
        if self.count is not None and self.count < len(fields):
            fields = random.Random(f"{self.kind}:{self.seed}").sample(fields, self.count)
        return [as_record(one, f"{self.kind}:{number}") for number, one in enumerate(fields, 1)]


def choices() -> list[dict[str, Any]]:
    """The written items, as multiple choice; the right answer is the first of each line."""
    made = []
    for topic, (lines, wording) in QUESTIONS.items():
        for line in lines.strip().splitlines():
            question, *answers = (piece.strip() for piece in line.split(" | "))
            prompt = wording.format(question)
            made.append(
                {"prompt": prompt, "completion": answers[0], "choices": answers, "metric": "choice", "topic": topic}
            )
    return made


def numbers() -> list[dict[str, Any]]:
    """Questions whose answer is a number, in whatever words the model puts it."""
    pairs = [line.split(" | ") for line in NUMBERS.strip().splitlines()]
    return [_number(question, answer, "numbers") for question, answer in pairs]


def sums() -> list[dict[str, Any]]:
    """Twelve different sums of two small numbers."""
    pairs = [(first, second) for first in range(2, 10) for second in range(2, 10)]
    chosen = random.Random("retain:sums").sample(pairs, 12)
    return [_number(f"What is {first} + {second}?", str(first + second), "sums") for first, second in chosen]


def _number(prompt: str, answer: str, topic: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answer, "metric": "number", "topic": topic}
