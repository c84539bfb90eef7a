"""Sums and word problems with worked steps, ending in `#### result`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.datasets.base import Dataset, Split, belongs, draw_records
from luthier.types import Record

Problem = tuple[str, list[str], int]
"""The question, its worked steps, the number that answers it."""
NAMES = ("Mia", "Ben", "Ada", "Tom", "Eva", "Sam", "Lea", "Max", "Ida", "Jim")
THINGS = ("apples", "books", "coins", "eggs", "pens", "stamps", "cards", "nuts", "shells", "bricks")


class Sums(Dataset):
    """Sums with worked steps, as plain chains (`17+25-8`) or as short word problems.

    The answer shows one step per line and ends in `#### result`, scored as a number. One problem in
    five, by its numbers' hash, is `test`.
    """

    # Mostly `plain`: word problems do not read `terms`, and every option must change the records of some setting.
    SETTINGS: ClassVar = (
        {"count": 40, "style": "plain"},
        {"count": 30, "style": "plain"},
        {"count": 40, "style": "plain", "seed": 1},
        {"count": 40, "style": "plain", "split": "test"},
        {"count": 40, "style": "both"},
        {"count": 40, "style": "plain", "terms": 5},
        {"count": 40, "style": "plain", "largest": 20},
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
        description="`train`, or `test`: one problem in five by the hash of its numbers, so that no seed draws a test "
        "problem for training.",
    )
    style: Literal["plain", "words", "both"] = Field(
        "words",
        description="`plain` chains such as 17+25-8, short problems in `words`, or `both`, drawn evenly.",
    )
    terms: int = Field(
        3,
        ge=2,
        le=6,
        description="Numbers in the longest chain of `style: plain`; word problems have their own. Larger makes longer"
        " chains.",
    )
    largest: int = Field(
        50,
        ge=2,
        description="Largest number of a chain, and bound of most amounts in word problems. Larger makes the "
        "arithmetic harder.",
    )

    def records(self) -> list[Record]:
        """Prompt and completion, and `number` after `####` as each record's metric."""
        return draw_records(self.kind, self.draw, self.count, self.seed, self.split)

    def draw(self, generator: random.Random) -> dict[str, Any] | None:
        """The columns of one record; None if it is in the other split."""
        style = generator.choice(("plain", "words")) if self.style == "both" else self.style
        if style == "plain":
            question, steps, total = chain(generator, self.terms, self.largest)
        else:
            question, steps, total = generator.choice(STORIES)(generator, self.largest)
        # Only the numbers decide the split: the same sum about other names or things is the same problem.
        numbers = "".join(letter for letter in question if letter.isdigit() or letter == " ")
        if not belongs(numbers, self.split):
            return None
        answer = "\n".join([*steps, f"#### {total}"])
        return {"prompt": question, "completion": answer, "metric": {"kind": "number", "after": "####"}}


def chain(generator: random.Random, terms: int, largest: int) -> Problem:
    """A sum of 2 to `terms` numbers, some of them negative; no intermediate total is below zero."""
    total = generator.randint(1, largest)
    text, steps = str(total), []
    for _ in range(generator.randint(2, terms) - 1):
        term = generator.randint(1, largest)
        sign = "-" if term <= total and generator.random() < 0.5 else "+"
        after = total - term if sign == "-" else total + term
        text += f"{sign}{term}"
        steps.append(f"{total}{sign}{term}={after}")
        total = after
    return f"{text}=", steps, total


def bought_and_gave(generator: random.Random, largest: int) -> Problem:
    """Somebody has some things, buys more and gives some away."""
    name, friend = generator.sample(NAMES, 2)
    thing = generator.choice(THINGS)
    start, more = generator.randint(2, largest), generator.randint(2, largest)
    gone = generator.randint(1, start + more - 1)
    question = f"{name} has {start} {thing}, buys {more} more and gives {gone} to {friend}. How many {thing} are left?"
    have = start + more
    return question, [f"{start}+{more}={have}", f"{have}-{gone}={have - gone}"], have - gone


def boxes(generator: random.Random, largest: int) -> Problem:
    """Somebody has boxes of one size and some loose things."""
    name, thing = generator.choice(NAMES), generator.choice(THINGS)
    number, size, loose = generator.randint(2, 9), generator.randint(2, 12), generator.randint(1, largest)
    question = (
        f"{name} fills {number} boxes with {size} {thing} each and has {loose} loose ones. How many {thing} in all?"
    )
    inside = number * size
    return question, [f"{number}*{size}={inside}", f"{inside}+{loose}={inside + loose}"], inside + loose


def sharing(generator: random.Random, largest: int) -> Problem:
    """Two people put their things together, and a group shares them equally."""
    name, other = generator.sample(NAMES, 2)
    thing, people = generator.choice(THINGS), generator.randint(2, 6)
    each = generator.randint(2, max(2, 2 * largest // people))
    total = people * each
    first = generator.randint(1, total - 1)
    question = (
        f"{name} brings {first} {thing} and {other} brings {total - first}. "
        f"They are shared equally by {people} people. How many does each get?"
    )
    return question, [f"{first}+{total - first}={total}", f"{total}/{people}={each}"], each


def savings(generator: random.Random, largest: int) -> Problem:
    """Somebody saves the same amount every week and pays for something."""
    name = generator.choice(NAMES)
    weeks, weekly = generator.randint(2, 9), generator.randint(2, 12)
    saved = weeks * weekly
    price = generator.randint(1, min(saved, largest))
    question = (
        f"{name} saves {weekly} dollars a week for {weeks} weeks and then spends {price} dollars. How much is left?"
    )
    return question, [f"{weekly}*{weeks}={saved}", f"{saved}-{price}={saved - price}"], saved - price


def difference(generator: random.Random, largest: int) -> Problem:
    """One person has some more than another; the question asks for both together."""
    name, other = generator.sample(NAMES, 2)
    thing = generator.choice(THINGS)
    few, more = generator.randint(1, largest), generator.randint(1, largest)
    question = f"{name} has {few} {thing}. {other} has {more} more than {name}. How many {thing} do they have together?"
    return question, [f"{few}+{more}={few + more}", f"{few}+{few + more}={2 * few + more}"], 2 * few + more


STORIES: tuple[Callable[[random.Random, int], Problem], ...] = (
    bought_and_gave, boxes, sharing, savings, difference,
)  # fmt: skip
