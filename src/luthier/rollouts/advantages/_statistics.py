"""Means and deviations of rewards and tokens, blind to those that are not there (NaN)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy
from numpy import ndarray


def mean_and_std(values: ndarray) -> tuple[float, float]:
    """Mean and unbiased standard deviation of the finite ones; (NaN, 0) of none, deviation 0 of one.

    The mean of equal values is exactly that value: their sum, divided by their number, may be off in the last bit,
    and a deviation of 1e-16 would then be divided by another one.
    """
    finite = values[numpy.isfinite(values)]
    if len(finite) == 0:
        return float("nan"), 0.0
    if finite.min() == finite.max():
        return float(finite[0]), 0.0
    return float(finite.mean()), float(finite.std(ddof=1))


def less_group_means(values: ndarray, groups: Iterable[ndarray]) -> ndarray:
    """Values [B] less the mean of their group; `groups` are the places of the members of each.

    NaN stays NaN and counts in no mean.
    """
    centred = values.copy()
    for places in groups:
        centred[places] -= mean_and_std(values[places])[0]
    return centred
