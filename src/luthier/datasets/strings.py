"""Small operations on strings of letters, the first task of the packaged model nano."""

from __future__ import annotations

import random
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.datasets.base import Dataset, Split, belongs, draw_records
from luthier.types import Record

Task = Literal["copy", "reverse", "sort", "compare", "count", "shift", "upper"]
TASKS: tuple[Task, ...] = ("copy", "reverse", "sort", "compare", "count", "shift", "upper")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Strings(Dataset):
    """Copy, reverse, sort, compare, count, shift and upper-case strings of letters.

    Prompts read `sort: dbca`; the metric compares answers letter for letter. The hash of the argument puts one in
    five into `test`, so no seed leaks a test string into training.
    """

    SETTINGS: ClassVar = (
        {"count": 40},
        {"count": 30},
        {"count": 40, "seed": 1},
        {"count": 40, "split": "test"},
        {"count": 40, "tasks": ["reverse"]},
        {"count": 40, "shortest": 5},
        {"count": 40, "longest": 12},
    )

    count: int = Field(
        1000,
        ge=1,
        description="Number of records drawn; a smaller number gives the first of a larger one.",
    )
    seed: int = Field(
        0,
        description="Seed of the draw: each seed gives its own records, the same on every machine.",
    )
    split: Split = Field(
        "train",
        description="`train`, or `test`: one argument in five by its hash, so that no seed draws a test string for "
        "training.",
    )
    tasks: tuple[Task, ...] = Field(
        TASKS,
        description="Tasks that prompts are drawn from, each equally often on average.",
    )
    shortest: int = Field(
        3,
        ge=2,
        description="Letters of the shortest string. Raise it for harder tasks and more different records.",
    )
    longest: int = Field(6, le=64, description="Letters of the longest string, at most 64. Larger makes tasks harder.")

    @model_validator(mode="after")
    def _check(self) -> Strings:
        if self.shortest > self.longest:
            raise ValueError(f"shortest ({self.shortest}) is more than longest ({self.longest})")
        if not self.tasks:
            raise ValueError("tasks is empty")
        return self

    def records(self) -> list[Record]:
        """Records of prompt and completion, with the name of the task and the metric `exact`."""
        return draw_records(self.kind, self.draw, self.count, self.seed, self.split)

    def draw(self, generator: random.Random) -> dict[str, Any] | None:
        """The columns of one record; None if it is in the other split."""
        task = generator.choice(self.tasks)
        length = generator.randint(self.shortest, self.longest)
        text = "".join(generator.choices(LETTERS, k=length))
        argument, answer = solve(task, text, generator)
        if not belongs(argument, self.split):
            return None
        metric = {"kind": "exact", "ignore_case": False}
        return {"prompt": f"{task}: {argument}", "completion": answer, "task": task, "metric": metric}


def solve(task: Task, text: str, generator: random.Random) -> tuple[str, str]:
    """The argument that the prompt names after the task, and the right answer."""
    if task == "compare":
        other = _neighbour(text, generator)
        return f"{text} {other}", min(text, other)
    if task == "count":
        # Random letters seldom repeat: without copies of the letter nearly every answer would be 1.
        letter = generator.choice(text)
        copies = generator.sample(range(len(text)), k=generator.randint(0, len(text) // 2))
        text = "".join(letter if index in copies else old for index, old in enumerate(text))
        return f"{letter} in {text}", str(text.count(letter))
    answers = {
        "copy": text,
        "reverse": text[::-1],
        "sort": "".join(sorted(text)),
        "shift": "".join(LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in text),
        "upper": text.upper(),
    }
    return text, answers[task]


def _neighbour(text: str, generator: random.Random) -> str:
    """A string that shares a random number of first letters with `text`, so that a comparison reads past the first."""
    index = generator.randrange(len(text))
    others = [letter for letter in LETTERS if letter != text[index]]
    rest = "".join(generator.choices(LETTERS, k=len(text) - index - 1))
    return text[:index] + generator.choice(others) + rest
