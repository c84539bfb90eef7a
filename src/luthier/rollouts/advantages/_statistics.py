"""Means and deviations of rewards and tokens; NaN marks a missing number and is left out."""

from __future__ import annotations

from collections.abc import Iterable

import numpy
from numpy import ndarray


def mean_and_std(values: ndarray) -> tuple[float, float]:
    """Mean and unbiased standard deviation of the finite numbers: (NaN, 0) of none, deviation 0 of one.

    The mean of equal numbers is exactly that number.
    """
    finite = values[numpy.isfinite(values)]
    if len(finite) == 0:
        return float("nan"), 0.0
    # Sum / count may be off in the last bit; a difference of 1e-16 divided by a deviation of 1e-16 is then no longer 0.
    if finite.min() == finite.max():
        return float(finite[0]), 0.0
    return float(finite.mean()), float(finite.std(ddof=1))


def less_group_means(values: ndarray, groups: Iterable[ndarray]) -> ndarray:
    """Numbers [B] less the mean of their group; `groups` holds the indices of each group's members.

    NaN stays NaN and counts in no mean.
    """
    centred = values.copy()
    for members in groups:
        centred[members] -= mean_and_std(values[members])[0]
    return centred
