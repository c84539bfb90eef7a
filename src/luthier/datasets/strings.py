"""Small operations on strings of letters: what nano learns before anything else."""

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

    Prompts read `sort: dbca`; answers are checked letter for letter. One argument in five, by
    its hash, is `test`, so no seed can leak a test string into training.
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
        description="Seed of the draw: the same seed gives the same records everywhere, another one others.",
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
        """Prompt and completion, the task's name, and `exact` as each record's metric."""
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
    """What follows the task's name in the prompt, and the right answer."""
    if task == "compare":
        other = _neighbour(text, generator)
        return f"{text} {other}", min(text, other)
    if task == "count":
        letter = generator.choice(text)
        places = generator.sample(range(len(text)), k=generator.randint(0, len(text) // 2))
        text = "".join(letter if place in places else old for place, old in enumerate(text))
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
    """A string with the same beginning, so that the first letter alone does not decide every time."""
    place = generator.randrange(len(text))
    others = [letter for letter in LETTERS if letter != text[place]]
    rest = "".join(generator.choices(LETTERS, k=len(text) - place - 1))
    return text[:place] + generator.choice(others) + rest
