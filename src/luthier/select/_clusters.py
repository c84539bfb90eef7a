"""k-means, and an even share of unequal clusters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from numpy import ndarray


def k_means(points: ndarray, clusters: int, iterations: int, seed: int) -> tuple[ndarray, float]:
    """Lloyd's algorithm from k-means++ centres: points [n,T] → cluster of each [n], and the sum of squared distances.

    At most `clusters` clusters, fewer where points coincide; equal points are in one cluster.
    """
    draw = numpy.random.default_rng(seed)
    centres = _spread(points, clusters, draw)
    for _ in range(iterations):
        labels = _distances(points, centres).argmin(1)
        sums = numpy.zeros_like(centres)
        numpy.add.at(sums, labels, points)
        sizes = numpy.bincount(labels, minlength=len(centres))
        moved = numpy.where(sizes[:, None] > 0, sums / numpy.maximum(sizes, 1)[:, None], centres)
        if numpy.array_equal(moved, centres):
            break
        centres = moved
    distances = _distances(points, centres)
    return distances.argmin(1), float(distances.min(1).sum())


def _spread(points: ndarray, clusters: int, draw: numpy.random.Generator) -> ndarray:
    """k-means++ (Arthur & Vassilvitskii 2007): each next centre with chance proportional to its squared distance."""
    chosen = [int(draw.integers(len(points)))]
    nearest = ((points - points[chosen[0]]) ** 2).sum(1)
    while len(chosen) < clusters and nearest.max() > 0:
        place = int(numpy.searchsorted(nearest.cumsum() / nearest.sum(), draw.random(), side="right"))
        chosen.append(min(place, len(points) - 1))
        nearest = numpy.minimum(nearest, ((points - points[chosen[-1]]) ** 2).sum(1))
    return points[chosen].copy()


def _distances(points: ndarray, centres: ndarray) -> ndarray:
    """Squared distances [n,k], one centre at a time: no product of rounding errors, no [n,k,T]."""
    return numpy.stack([((points - centre) ** 2).sum(1) for centre in centres], axis=1)


def even_shares(sizes: Sequence[int], budget: int, smallest: int = 1) -> list[int]:
    """How many to take of each cluster: ascending by size, each gets an even share of what is left.

    What a small cluster cannot use passes on to larger ones, so the sum is `budget` where there is enough.
    Clusters smaller than `smallest` come last, and only for what is then still missing.
    """
    taken = [0] * len(sizes)
    left = budget
    for group in (lambda size: size >= smallest, lambda size: size < smallest):
        order = sorted((place for place, size in enumerate(sizes) if group(size)), key=lambda place: sizes[place])
        for number, place in enumerate(order):
            taken[place] = min(sizes[place], left // (len(order) - number))
            left -= taken[place]
    return taken
