"""S2L: even shares of clusters of records, by their loss curves over a small model's training."""

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
    records it). k-means with Euclidean distance; then, ascending by size, every cluster gets an even share of the
    remaining budget, so that rare kinds of records are taken completely and common ones thinned out. Within a cluster
    the draw is by (seed, id). NaN counts as 0.

    `smallest: 3` puts clusters of fewer than three records last, and `stratify_by: source` clusters each value of a
    column separately: both as in the published code. There are at most half as many clusters as records.

    Raises: DataError for records without a trajectory.
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

    @property
    def fields(self) -> tuple[str, ...]:
        return () if self.stratify_by is None else (self.stratify_by,)

    def choose(self, candidates: Sequence[Candidate], columns: Columns, seed: int) -> list[int]:
        trajectories = columns["trajectory"]
        if missing := [candidate.row.id for candidate in candidates if candidate.row.id not in trajectories]:
            raise DataError(
                f"{len(missing)} records have no trajectory, such as {missing[0]}.",
                "Probe the small model's training on all records of this step.",
            )
        strata: dict[str, list[int]] = {}
        # By id: k-means starts from drawn indices, and the choice must not depend on the order of the candidates.
        for index in sorted(range(len(candidates)), key=lambda index: candidates[index].row.id):
            stratum = str(candidates[index].record.fields.get(self.stratify_by)) if self.stratify_by else ""
            strata.setdefault(stratum, []).append(index)
        quotas = even_shares([len(indices) for indices in strata.values()], max(1, round(self.share * len(candidates))))
        kept: list[int] = []
        for indices, quota in zip(strata.values(), quotas, strict=True):
            names = [candidates[index].row.id for index in indices]
            curves = [numpy.asarray(trajectories[name], dtype=numpy.float64) for name in names]
            points = numpy.nan_to_num(numpy.stack(curves))
            kept += [indices[picked] for picked in self.pick(points, names, quota, seed)]
        return sorted(kept)

    def pick(self, points: numpy.ndarray, names: Sequence[str], budget: int, seed: int) -> list[int]:
        """Indices of `budget` of the n points [n,T], not sorted; `names` key the draw."""
        if self.normalise == "zscore":
            spread = points.std(1, keepdims=True)
            points = (points - points.mean(1, keepdims=True)) / numpy.where(spread > 0, spread, 1.0)
        clusters = max(1, min(self.clusters, len(points) // 2))  # at least two records per cluster on average
        labels, _ = k_means(points, clusters, self.iterations, seed)
        members = [numpy.flatnonzero(labels == label).tolist() for label in range(int(labels.max()) + 1)]
        quotas = even_shares([len(cluster) for cluster in members], budget, self.smallest)
        picked: list[int] = []
        for cluster, quota in zip(members, quotas, strict=True):
            picked += sorted(cluster, key=lambda index: order(seed, names[index]))[:quota]
        return picked
