"""What a model should not forget while it learns something else."""

from __future__ import annotations

import random
from typing import Any

from pydantic import Field

from luthier.data.generated._retain_items import QUESTIONS, WORDS
from luthier.data.generated.base import Dataset, as_record
from luthier.types import Record


class Retain(Dataset):
    """Short general questions that a small instruct model mostly answers: what training should leave intact.

    Facts, yes or no, sentiment, topics and small sums are scored as multiple choice by log-probability;
    words to copy and sums to answer are generated, so that a model that now answers everything in its
    new format is caught too. Every record names its metric. `count` takes a part, the same for the same `seed`.
    """

    count: int | None = Field(None, ge=1)
    seed: int = 0

    def records(self) -> list[Record]:
        """Prompt, completion, metric and, for multiple choice, the choices."""
        fields = [*questions(), *sums(), *words()]
        if self.count is not None and self.count < len(fields):
            fields = random.Random(f"{self.kind}:{self.seed}").sample(fields, self.count)
        return [as_record(one, f"{self.kind}:{number}") for number, one in enumerate(fields, 1)]


def questions() -> list[dict[str, Any]]:
    """The written items, as multiple choice."""
    made = []
    for topic, (lines, wording) in QUESTIONS.items():
        for line in lines.strip().splitlines():
            question, *answers = (piece.strip() for piece in line.split(" | "))
            made.append(_choice(wording.format(question), answers, topic))
    return made


def sums() -> list[dict[str, Any]]:
    """Sums of small numbers: some to choose, some to answer freely."""
    generator = random.Random("retain:sums")
    made = []
    pairs = [(first, second) for first in range(2, 10) for second in range(2, 10)]
    for number, (first, second) in enumerate(generator.sample(pairs, 20)):
        right = first + second
        prompt = f"What is {first} + {second}?"
        if number % 2:
            wrong = generator.sample([value for value in range(4, 19) if value != right], 3)
            made.append(_choice(prompt, [str(value) for value in (right, *wrong)], "sums"))
        else:
            made.append({"prompt": prompt, "completion": str(right), "metric": "number", "topic": "sums"})
    return made


def words() -> list[dict[str, Any]]:
    """Words to repeat or to write in capitals, generated and compared letter for letter."""
    made = []
    for number, word in enumerate(WORDS):
        capitals = number % 2 == 1
        prompt = f"Write the word {word} in capital letters." if capitals else f"Repeat this word: {word}"
        metric = {"kind": "exact", "ignore_case": not capitals}
        made.append(
            {"prompt": prompt, "completion": word.upper() if capitals else word, "metric": metric, "topic": "words"}
        )
    return made


def _choice(prompt: str, answers: list[str], topic: str) -> dict[str, Any]:
    return {"prompt": prompt, "completion": answers[0], "choices": answers, "metric": "choice", "topic": topic}
