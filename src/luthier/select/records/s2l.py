"""S2L: an even share of every way in which a small model's loss falls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy
from pydantic import Field

from luthier.errors import DataError
from luthier.keyed import order
from luthier.select._clusters import even_shares, k_means
from luthier.select.records.base import Columns, Subset
from luthier.types import Candidate


class S2L(Subset):
    """Clusters records by their loss over a small model's training, and samples the clusters evenly.

    The column `trajectory` [T] holds a record's mean loss per target at T moments of that training (a probe
    leaves it). k-means with Euclidean distance; then, ascending by size, every cluster gives an even share of what
    is left, so that rare kinds of records are taken whole and common ones thinned out. Within a cluster the draw
    is by (seed, id). NaN counts as 0.

    `smallest: 3` leaves clusters below three for the end and `stratify_by: source` clusters each value of a
    column by itself: both as in the published code. Clusters are at most half as many as the records.

    Source: arXiv 2403.07384, algorithm 1.
    """

    PAPER: ClassVar[str] = "arXiv 2403.07384"
    READS: ClassVar = ("trajectory",)
    SETTINGS: ClassVar = (
        {"clusters": 6, "share": 0.4},
        {"clusters": 2, "share": 0.4},
        {"clusters": 6, "share": 0.2},
        {"clusters": 6, "share": 0.4, "smallest": 4},
        {"clusters": 4, "share": 0.4},
        {"clusters": 4, "share": 0.4, "iterations": 1},
        {"clusters": 6, "share": 0.4, "normalise": "zscore"},
        {"clusters": 6, "share": 0.4, "stratify_by": "source"},
    )

    share: float = Field(
        0.1,
        gt=0.0,
        le=1.0,
        description="Share of the records that is kept. Smaller thins out the common kinds first; rare kinds are taken"
        " whole.",
    )
    clusters: int = Field(
        100,
        ge=1,
        description="Clusters of loss curves, at most half as many as records. More tells finer kinds apart; the "
        "published code has 100 in each source.",
    )
    iterations: int = Field(
        20,
        ge=1,
        description="Rounds of k-means at most; it ends sooner once nothing moves. The published code has 20.",
    )
    smallest: int = Field(
        1,
        ge=1,
        description="Records that a cluster needs for an even share; smaller clusters only fill up what is missing. "
        "The published code has 3, the paper no such rule.",
    )
    normalise: Literal["none", "zscore"] = Field(
        "none",
        description="`none` compares level and shape of loss curves; `zscore` gives each curve mean 0 and deviation 1,"
        " so that shape alone counts.",
    )
    stratify_by: str | None = Field(
        None,
        description="Column of the data, each value of which is clustered by itself and gets an even share. Null "
        "clusters all together; the published code uses `source`.",
    )

    def choose(self, candidates: Sequence[Candidate], columns: Columns, seed: int) -> list[int]:
        found = columns["trajectory"]
        if missing := [one.row.id for one in candidates if one.row.id not in found]:
            raise DataError(
                f"{len(missing)} records have no trajectory, such as {missing[0]}.",
                "Probe the small model's training on all records that are chosen from.",
            )
        strata: dict[str, list[int]] = {}
        for place in sorted(range(len(candidates)), key=lambda place: candidates[place].row.id):
            name = str(candidates[place].record.fields.get(self.stratify_by)) if self.stratify_by else ""
            strata.setdefault(name, []).append(place)
        budget = max(1, round(self.share * len(candidates)))
        kept: list[int] = []
        for places, quota in zip(strata.values(), even_shares([len(p) for p in strata.values()], budget), strict=True):
            names = [candidates[place].row.id for place in places]
            points = numpy.nan_to_num(numpy.stack([numpy.asarray(found[name], dtype=numpy.float64) for name in names]))
            kept += [places[index] for index in self.pick(points, names, quota, seed)]
        return sorted(kept)

    def pick(self, points: numpy.ndarray, names: Sequence[str], budget: int, seed: int) -> list[int]:
        """Places of `budget` of the n points [n,T]; `names` key the draw."""
        if self.normalise == "zscore":
            spread = points.std(1, keepdims=True)
            points = (points - points.mean(1, keepdims=True)) / numpy.where(spread > 0, spread, 1.0)
        labels, _ = k_means(points, max(1, min(self.clusters, len(points) // 2)), self.iterations, seed)
        members = [numpy.flatnonzero(labels == label).tolist() for label in range(int(labels.max()) + 1)]
        taken = even_shares([len(one) for one in members], budget, self.smallest)

        def lot(place: int) -> bytes:
            return order(seed, names[place])

        return [place for one, quota in zip(members, taken, strict=True) for place in sorted(one, key=lot)[:quota]]
