"""Preference pairs of another data set: its answers, and the same answers with a slip."""

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

    The rejected answer is the right one with two different neighbouring letters exchanged, or without its last letter
    if all letters are equal: a mistake that a model may well make.
    """

    SETTINGS: ClassVar = (
        {"of": {"kind": "strings", "count": 40, "tasks": ["reverse"]}},
        {"of": {"kind": "sums", "count": 40}},
        {"of": {"kind": "strings", "count": 40, "tasks": ["reverse"]}, "seed": 1},
    )

    of: Annotated[Dataset, part_field("dataset")] = Field(
        description="Generated data set of prompts and answers: its answers are the chosen ones, copies with a slip "
        "the rejected ones.",
    )
    seed: int = Field(
        0, description="Seed of the positions of the slips; the chosen answers are the same for all seeds."
    )

    def records(self) -> list[Record]:
        """The records of the other set, in its order, as preference pairs.

        Raises:
            DataError: a record of the other set has no completion that is text.
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
    """The text with two different neighbouring letters exchanged, or without its last letter."""
    # Equal neighbours are left out: exchanging them would make a pair of equal answers, which teaches nothing.
    indices = [index for index in range(len(text) - 1) if text[index] != text[index + 1]]
    if not indices:
        return text[:-1]
    index = draw.choice(indices)
    return text[:index] + text[index + 1] + text[index] + text[index + 2 :]
