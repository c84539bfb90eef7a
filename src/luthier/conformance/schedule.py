"""The checks of schedules: a factor of the learning rate that depends on progress alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.conformance.base import Failed, check_options, variants

POINTS = 200
"""Steps between the moments of a training at which the factor is computed; both ends are among the moments."""


def factors(schedule: Any, order: Sequence[int] = range(POINTS + 1)) -> list[float]:
    """The factors at evenly spaced moments, computed in this order and returned in the order of progress."""
    by_point = {point: schedule.factor(point / POINTS) for point in order}
    return [by_point[point] for point in sorted(by_point)]


def check_range(schedules: Sequence[Any]) -> None:
    """A finite number from 0 to 1 at every moment, and above 0 at some."""
    for schedule in schedules:
        computed = factors(schedule)
        for point, factor in enumerate(computed):
            if not isinstance(factor, int | float) or not math.isfinite(factor):
                raise Failed(f"{schedule!r}: at progress {point / POINTS:g} the factor is {factor!r}, no finite number")
            if not 0.0 <= factor <= 1.0:
                raise Failed(
                    f"{schedule!r}: at progress {point / POINTS:g} the factor is {factor:g}: it lies from 0 to 1, and"
                    " the optimizer's `lr` is the highest rate"
                )
        if not any(computed):
            raise Failed(f"{schedule!r}: the factor is 0 at every moment")


def check_pure(schedule: Any) -> None:
    """The same progress gives the same factor, whatever calls came before: a resumed run starts in the middle."""
    forwards, backwards = factors(schedule), factors(schedule, range(POINTS, -1, -1))
    if forwards != backwards:
        raise Failed("the factor depends on earlier calls: is there a counter, or a random call?")


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a schedule, in the order they are run."""
    schedules = variants(part)

    def values(schedule: Any) -> dict[str, Tensor]:
        return {"factors": torch.tensor(factors(schedule), dtype=torch.float64)}

    yield "a finite factor from 0 to 1", lambda: check_range(schedules)
    yield "a function of progress alone", lambda: check_pure(schedules[0])
    yield "every option changes something", lambda: check_options(schedules, values)
