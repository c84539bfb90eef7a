"""First right: each record's first answer that the reward calls right, else its gold answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from luthier.select.records.base import Columns, Subset, by_record
from luthier.types import Candidate


class FirstRight(Subset):
    """Keeps the first candidate of each record with a reward of at least `right`, in the order of `data`.

    Gold answers are right by definition, so `data: [answers, rewrites, data]` falls back on them. If the list does
    not contain them, `otherwise: drop` drops a record without a right answer. Source: S3FT, arXiv 2502.08130.
    """

    PAPER: ClassVar[str] = "arXiv 2502.08130"
    SETTINGS: ClassVar = ({}, {"right": 0.5}, {"otherwise": "last"})

    right: float = Field(
        1.0,
        description="Reward from which an answer counts as right; gold answers always do. Lower takes half-right ones.",
    )
    otherwise: Literal["drop", "last"] = Field(
        "drop",
        description="What a record without a right answer gives: nothing (`drop`), or its `last` candidate.",
    )

    def choose(self, candidates: Sequence[Candidate], columns: Columns, seed: int) -> list[int]:
        kept = []
        for indices in by_record(candidates).values():
            right = [index for index in indices if self._is_right(candidates[index])]
            kept += right[:1] or (indices[-1:] if self.otherwise == "last" else [])
        return kept

    def _is_right(self, candidate: Candidate) -> bool:
        return candidate.source == "data" or (candidate.reward is not None and candidate.reward >= self.right)
