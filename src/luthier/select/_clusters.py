"""k-means, and even quotas from clusters of unequal size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from numpy import ndarray


def k_means(points: ndarray, clusters: int, iterations: int, seed: int) -> tuple[ndarray, float]:
    """Lloyd's algorithm from k-means++ centres: points [n,T] → cluster of each [n], and the sum of squared distances.

    There are at most `clusters` clusters, fewer where points coincide; equal points are in the same cluster.
    """
    generator = numpy.random.default_rng(seed)
    centres = _initial_centres(points, clusters, generator)
    for _ in range(iterations):
        labels = _distances(points, centres).argmin(1)
        sums = numpy.zeros_like(centres)
        numpy.add.at(sums, labels, points)
        sizes = numpy.bincount(labels, minlength=len(centres))
        # An empty cluster keeps its centre; the mean of no points would be NaN.
        moved = numpy.where(sizes[:, None] > 0, sums / numpy.maximum(sizes, 1)[:, None], centres)
        if numpy.array_equal(moved, centres):
            break
        centres = moved
    distances = _distances(points, centres)
    return distances.argmin(1), float(distances.min(1).sum())


def _initial_centres(points: ndarray, clusters: int, generator: numpy.random.Generator) -> ndarray:
    """k-means++ (Arthur & Vassilvitskii 2007): draw each next centre in proportion to its squared distance, [k,T]."""
    chosen = [int(generator.integers(len(points)))]
    nearest = ((points - points[chosen[0]]) ** 2).sum(1)
    while len(chosen) < clusters and nearest.max() > 0:
        index = int(numpy.searchsorted(nearest.cumsum() / nearest.sum(), generator.random(), side="right"))
        chosen.append(min(index, len(points) - 1))  # rounding may leave the last cumulated share below 1
        nearest = numpy.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(1))
    return points[chosen].copy()


def _distances(points: ndarray, centres: ndarray) -> ndarray:
    """Squared distances [n,k].

    One centre at a time: |x|² - 2xy + |y|² would lose digits where points are close, and all at once take [n,k,T].
    """
    return numpy.stack([((points - centre) ** 2).sum(1) for centre in centres], axis=1)


def even_shares(sizes: Sequence[int], budget: int, smallest: int = 1) -> list[int]:
    """The number to take from each cluster: ascending by size, each gets an even share of the remaining budget.

    The unused share of a small cluster goes to larger ones, so the sum is `budget` if there are enough points
    (arXiv 2403.07384, algorithm 1). Clusters smaller than `smallest` come last and fill up what is missing.
    """
    quotas = [0] * len(sizes)
    remaining = budget
    ascending = sorted(range(len(sizes)), key=lambda cluster: sizes[cluster])
    large = [cluster for cluster in ascending if sizes[cluster] >= smallest]
    small = [cluster for cluster in ascending if sizes[cluster] < smallest]
    for group in (large, small):
        for number, cluster in enumerate(group):
            quotas[cluster] = min(sizes[cluster], remaining // (len(group) - number))
            remaining -= quotas[cluster]
    return quotas
