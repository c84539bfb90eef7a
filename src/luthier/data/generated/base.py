"""What generated data sets share: records drawn one by one, each from a seed of its own."""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from luthier.errors import DataError
from luthier.parts import Part
from luthier.types import Record, Shape


class Dataset(Part):
    """A data set made from options and a seed; the same options give the same records everywhere."""

    @abstractmethod
    def records(self) -> list[Record]:
        """All records, in order. They carry no id yet: the content's hash becomes it."""


def draw_records(dataset: Dataset, count: int, seed: int, split: str) -> list[Record]:
    """Draw `count` different records with `dataset.draw(generator) -> fields`; a smaller count gives a prefix.

    Raises:
        DataError: the options allow fewer different records than asked for.
    """
    found: list[Record] = []
    seen: set[str] = set()
    misses = 0
    attempt = 0
    while len(found) < count:
        generator = random.Random(f"{dataset.kind}:{split}:{seed}:{attempt}")
        fields = dataset.draw(generator)  # type: ignore[attr-defined]
        attempt += 1
        key = json.dumps(fields.get("messages", fields.get("prompt")), sort_keys=True)
        if key in seen:
            misses += 1
            if misses > 1000:
                raise DataError(
                    f"{dataset.kind} found only {len(found)} different records of the {count} asked for.",
                    "Ask for fewer (`count`) or allow more variety in its options.",
                )
            continue
        misses = 0
        seen.add(key)
        found.append(as_record(fields, f"{dataset.kind}:{split}:{len(found)}"))
    return found


def as_record(fields: Mapping[str, Any], origin: str) -> Record:
    """A record without an id, its shape told by its columns."""
    shape: Shape = "messages" if "messages" in fields else "prompt_completion"
    return Record("", shape, dict(fields), origin)
