"""Another data set as preference pairs: its answers, and the same answers with a slip."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field

from luthier.datasets.base import Dataset
from luthier.errors import DataError
from luthier.parts import part_field
from luthier.types import Record


class Pairs(Dataset):
    """Right answers preferred to wrong ones: `{kind: pairs, of: {kind: strings, count: 500}}`.

    The rejected answer is the right one with two neighbouring letters that differ exchanged, or without its last
    letter where there are none: near enough that a model may have given it.
    """

    SETTINGS: ClassVar = (
        {"of": {"kind": "strings", "count": 40, "tasks": ["reverse"]}},
        {"of": {"kind": "sums", "count": 40}},
        {"of": {"kind": "strings", "count": 40, "tasks": ["reverse"]}, "seed": 1},
    )

    of: Annotated[Dataset, part_field("dataset")] = Field(
        description="Generated data set of prompts and answers; each answer becomes the chosen one beside a copy with "
        "a slip.",
    )
    seed: int = Field(0, description="Seed of where the slips stand; the chosen answers are the same for all seeds.")

    def records(self) -> list[Record]:
        """The records of the other set, in its order, as preference pairs.

        Raises:
            DataError: they are no text of prompt and completion.
        """
        return [self._paired(record) for record in self.of.records()]

    def _paired(self, record: Record) -> Record:
        answer = record.fields.get("completion")
        if not isinstance(answer, str):
            raise DataError("Only answers that are text can have a slip.", "Use another data set in `of`.")
        fields = {name: value for name, value in record.fields.items() if name != "completion"}
        slip = with_slip(answer, random.Random(f"pairs:{self.seed}:{record.origin}"))
        return replace(record, shape="preference", fields={**fields, "chosen": answer, "rejected": slip})


def with_slip(text: str, draw: random.Random) -> str:
    """The text with one pair of different neighbours exchanged, or without its last letter."""
    places = [place for place in range(len(text) - 1) if text[place] != text[place + 1]]
    if not places:
        return text[:-1]
    place = draw.choice(places)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
