"""Several generated data sets as one."""

from __future__ import annotations

from itertools import chain
from typing import Annotated, ClassVar

from pydantic import Field

from luthier.datasets.base import Dataset
from luthier.parts import part_field
from luthier.types import Record


class Mix(Dataset):
    """Several generated data sets as one: `{kind: mix, of: [{kind: strings}, {kind: sums, count: 100}]}`."""

    SETTINGS: ClassVar = (
        {"of": [{"kind": "strings", "count": 20}, {"kind": "sums", "count": 20}]},
        {"of": [{"kind": "strings", "count": 20}]},
    )

    of: list[Annotated[Dataset, part_field("dataset")]] = Field(
        min_length=1,
        description="Generated data sets, joined one after the other; training shuffles their records.",
    )

    def records(self) -> list[Record]:
        """The records of all sets, one set after the other."""
        return [*chain.from_iterable(dataset.records() for dataset in self.of)]
