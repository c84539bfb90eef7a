"""Label noise: another data set with a share of its answers exchanged."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field

from luthier.datasets.base import Dataset
from luthier.errors import DataError
from luthier.parts import part_field
from luthier.types import Record


class Shuffled(Dataset):
    """A data set with wrong labels: `{kind: shuffled, of: {kind: sums, count: 500}, share: 0.2}`.

    Each record of the share gets the answer of another, so the distribution of answers stays and every exchanged
    answer is wrong, unless two answers are equal. Exchanged records have the column `shuffled: true`.
    """

    SETTINGS: ClassVar = (
        {"of": {"kind": "strings", "count": 40}},
        {"of": {"kind": "sums", "count": 40}},
        {"of": {"kind": "strings", "count": 40}, "seed": 1},
        {"of": {"kind": "strings", "count": 40}, "share": 0.5},
    )

    of: Annotated[Dataset, part_field("dataset")] = Field(
        description="Generated data set of prompts and answers, a share of whose answers is exchanged.",
    )
    share: float = Field(
        0.2,
        gt=0.0,
        le=1.0,
        description="Share of the records that get the answer of another record; at least two records. Larger makes "
        "more labels wrong.",
    )
    seed: int = Field(0, description="Seed of the choice of records that exchange their answers.")

    def records(self) -> list[Record]:
        """The records of the other set, in its order.

        Raises:
            DataError: the share is fewer than two records, or a record has no `completion`.
        """
        records = self.of.records()
        if any("completion" not in record.fields for record in records):
            raise DataError("Only answers of prompt and completion can be exchanged.", "Use another data set in `of`.")
        count = round(self.share * len(records))
        if count < 2:
            raise DataError(f"share {self.share} of {len(records)} records is {count}: none can be exchanged.")
        chosen = random.Random(f"shuffled:{self.seed}").sample(range(len(records)), count)
        # One cycle through all chosen records: a random permutation could leave some with their own answers.
        answers = [records[index].fields["completion"] for index in [*chosen[1:], chosen[0]]]
        for index, answer in zip(chosen, answers, strict=True):
            fields = {**records[index].fields, "completion": answer, "shuffled": True}
            records[index] = replace(records[index], fields=fields)
        return records
