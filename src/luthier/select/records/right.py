"""Right: keep right answers of each record, one at random or all; records that are often solved come first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from luthier.keyed import hash64
from luthier.select.records.base import Columns, Subset, by_record
from luthier.types import Candidate


class Right(Subset):
    """Rejection sampling: keeps one candidate with a reward of at least `right` per record, drops the others.

    `order: rate` puts records with the largest share of right samples first, a curriculum (train with
    `batch: {order: written}` to keep it); `data` keeps the order of the records. `choice` draws uniformly among the
    right answers, or takes the shortest, or `all` of them as a filter before another choice. Gold answers are right
    by definition. Source: FARE, arXiv 2510.17793.
    """

    PAPER: ClassVar[str] = "arXiv 2510.17793"
    SETTINGS: ClassVar = ({}, {"right": 0.5}, {"order": "data"}, {"choice": "shortest"}, {"choice": "all"})

    right: float = Field(
        1.0,
        description="Reward from which an answer counts as right; gold answers always do. Lower takes half-right ones.",
    )
    choice: Literal["random", "shortest", "all"] = Field(
        "random",
        description="Which right answer of a record is kept: one drawn evenly (`random`, the paper's), the `shortest`,"
        " or `all`, as a filter before another choice.",
    )
    order: Literal["rate", "data"] = Field(
        "rate",
        description="`rate` puts records with the largest share of right answers first, the paper's curriculum (with "
        "`batch: {order: written}`); `data` keeps the records' order.",
    )

    def choose(self, candidates: Sequence[Candidate], columns: Columns, seed: int) -> list[int]:
        kept: list[tuple[float, int]] = []
        for record, indices in by_record(candidates).items():
            right = [index for index in indices if self._is_right(candidates[index])]
            if right:
                chosen = right if self.choice == "all" else [self._pick(right, candidates, f"{seed}/{record}")]
                kept += [(len(right) / len(indices), index) for index in chosen]
        if self.order == "rate":
            kept.sort(key=lambda rate_and_index: -rate_and_index[0])  # stable: equal rates keep the records' order
        return [index for _, index in kept]

    def _is_right(self, candidate: Candidate) -> bool:
        return candidate.source == "data" or (candidate.reward or 0.0) >= self.right

    def _pick(self, right: list[int], candidates: Sequence[Candidate], key: str) -> int:
        if self.choice == "shortest":
            return min(right, key=lambda index: (len(candidates[index].row), index))
        # Keyed by the record, so that adding or removing other records does not change this draw.
        return right[hash64(key) % len(right)]
