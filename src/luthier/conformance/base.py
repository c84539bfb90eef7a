"""What every set of checks is made of: a fault, an outcome, the settings of a part, and whether options are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Checks = Callable[[type[Any]], Iterator[tuple[str, Callable[[], None]]]]
"""A part → the checks of its slot by name, in the order they are run."""


class Failed(Exception):
    """A check found the part wanting; the message says what was seen."""


@dataclass(frozen=True)
class CheckOutcome:
    """One line of the matrix."""

    check: str
    passed: bool
    seen: str


def apart(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Largest relative difference over tensors."""
    largest = max(float(t.norm()) for t in one.values())
    return max(float((one[n] - other[n]).norm()) / max(float(one[n].norm()), 1e-6 * largest, 1e-300) for n in one)


def variants(part: type[Any]) -> list[Any]:
    """The part under each of its SETTINGS."""
    return [part(**settings) for settings in part.SETTINGS]


def check_options(made: list[Any], result: Callable[[Any], dict], besides: Collection[str] = ()) -> None:
    """Every option changes the result from one of the SETTINGS, besides those that the part itself does not read."""
    part = type(made[0])
    results = [result(one) for one in made]
    silent = set(part.model_fields) - set(besides) - set(part.SAME_RESULT)
    for i, one in enumerate(made):
        for j in range(i):
            differing = {name for name in part.model_fields if getattr(one, name) != getattr(made[j], name)}
            if len(differing) == 1 and (
                results[i].keys() != results[j].keys()
                or any(a.shape != b.shape for a, b in zip(results[i].values(), results[j].values(), strict=True))
                or apart(results[i], results[j]) > 1e-12
            ):
                silent -= differing
    if silent:
        raise Failed(
            f"no two SETTINGS that differ only in `{sorted(silent)[0]}` give different results: the option is not read,"
            " or SETTINGS lacks a set that shows it"
        )
