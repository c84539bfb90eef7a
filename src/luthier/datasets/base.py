"""What generated data sets share: records drawn one by one, each from a seed of its own."""

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
MISSES = 2000  # draws in a row that gave nothing new before a data set counts as exhausted


class Dataset(Part):
    """A data set made from options and a seed; the same options give the same records everywhere."""

    SLOT: ClassVar[str] = "dataset"

    @abstractmethod
    def records(self) -> list[Record]:
        """All records, in order. They carry no id yet: the content's hash becomes it."""


def draw_records(
    name: str, draw: Callable[[random.Random], Mapping[str, Any] | None], count: int, seed: int, split: Split
) -> list[Record]:
    """Draw `count` different records; a smaller count gives a prefix of a larger one.

    Args:
        name: the data set's, part of every draw's seed and of the records' origin.
        draw: makes the columns of one record from a generator, or None where it belongs to the other split.
        count: how many.
        seed: another seed, other records.
        split: part of every draw's seed too.

    Raises:
        DataError: the options allow fewer different records than asked for.
    """
    found: dict[str, Record] = {}
    attempt = misses = 0
    while len(found) < count:
        fields = draw(random.Random(f"{name}:{split}:{seed}:{attempt}"))
        attempt += 1
        key = json.dumps(fields.get("messages", fields.get("prompt"))) if fields else ""
        if fields is None or key in found:
            misses += 1
            if misses > MISSES:
                raise DataError(
                    f"{name} has only {len(found)} different records of the {count} asked for.",
                    "Ask for fewer (`count`) or allow more variety in its options.",
                )
            continue
        misses = 0
        found[key] = as_record(fields, f"{name}:{split}:{len(found) + 1}")
    return list(found.values())


def as_record(fields: Mapping[str, Any], origin: str) -> Record:
    """A record without an id, its shape told by its columns."""
    shape: Shape = "messages" if "messages" in fields else "prompt_completion"
    return Record("", shape, dict(fields), origin)


def belongs(content: str, split: Split) -> bool:
    """Whether content is in a split: one in five is `test`, by its hash, whatever the seed."""
    is_test = sha256_number(content, 4) % 5 == 0
    return is_test == (split == "test")
