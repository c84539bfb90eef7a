"""The base class of generated data sets, and their draw: each attempt at a record has a seed of its own."""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.errors import DataError
from luthier.keyed import sha256_number
from luthier.parts import Part
from luthier.types import Record, Shape

Split = Literal["train", "test"]
MISSES = 2000  # attempts in a row without a new record, after which a data set counts as exhausted


class Dataset(Part):
    """Records of text made from options and a seed: the same options give the same records on every machine."""

    SLOT: ClassVar[str] = "dataset"

    @abstractmethod
    def records(self) -> list[Record]:
        """All records, in order, without ids: `load_records` makes an id from the hash of the content."""


def draw_records(
    name: str, draw: Callable[[random.Random], Mapping[str, Any] | None], count: int, seed: int, split: Split
) -> list[Record]:
    """Draw `count` records with different prompts; a smaller count gives a prefix of a larger one.

    Args:
        name: name of the data set; it enters the seed of every attempt and the origin of every record.
        draw: makes the columns of one record from a generator, or returns None for a record of the other split.
        count: number of records.
        seed: seed of the data set; every attempt derives its own from it.
        split: enters the seed of every attempt.

    Raises:
        DataError: the options allow fewer different records than `count`.
    """
    drawn: dict[str, Record] = {}
    attempt = misses = 0
    while len(drawn) < count:
        # A generator for each attempt: a change in how one record is drawn leaves all others as they were.
        fields = draw(random.Random(f"{name}:{split}:{seed}:{attempt}"))
        attempt += 1
        key = json.dumps(fields.get("messages", fields.get("prompt"))) if fields else ""
        if fields is None or key in drawn:
            misses += 1
            if misses > MISSES:
                raise DataError(
                    f"{name} has only {len(drawn)} different records of the {count} asked for.",
                    "Ask for fewer (`count`) or allow more variety in its options.",
                )
            continue
        misses = 0
        drawn[key] = as_record(fields, f"{name}:{split}:{len(drawn) + 1}")
    return list(drawn.values())


def as_record(fields: Mapping[str, Any], origin: str) -> Record:
    """A record without an id; its columns decide its shape."""
    shape: Shape = "messages" if "messages" in fields else "prompt_completion"
    return Record("", shape, dict(fields), origin)


def belongs(content: str, split: Split) -> bool:
    """Whether content belongs to a split: its hash puts one in five into `test`, whatever the seed of the data set."""
    is_test = sha256_number(content, 4) % 5 == 0
    return is_test == (split == "test")
