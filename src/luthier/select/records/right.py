"""Right: right answers of each record's own samples: one drawn evenly, or all; the often solved records first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from luthier.keyed import hash64
from luthier.select.records.base import Columns, Subset, by_record
from luthier.types import Candidate


class Right(Subset):
    """Rejection sampling: keeps one candidate with a reward of at least `right` per record, drops the others.

    `order: rate` puts records with the largest share of right samples first (stable: a curriculum; train with
    `batch: {order: written}` to keep it), `data` leaves the order of the records. `choice` draws evenly among the
    right ones, takes the shortest, or `all`: a filter in front of another choice. Gold answers are right by
    definition. Source: FARE, arXiv 2510.17793.
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
        for record, places in by_record(candidates).items():
            good = [place for place in places if self._good(candidates[place])]
            if good:
                chosen = good if self.choice == "all" else [self._one(good, candidates, f"{seed}/{record}")]
                kept += [(len(good) / len(places), place) for place in chosen]
        if self.order == "rate":
            kept.sort(key=lambda one: -one[0])
        return [place for _, place in kept]

    def _good(self, candidate: Candidate) -> bool:
        return candidate.source == "data" or (candidate.reward or 0.0) >= self.right

    def _one(self, good: list[int], candidates: Sequence[Candidate], key: str) -> int:
        if self.choice == "shortest":
            return min(good, key=lambda place: (len(candidates[place].row), place))
        return good[hash64(key) % len(good)]
