"""What all checks share: faults, outcomes, a part under its SETTINGS, and the check that every option is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from torch import Tensor

Checks = Callable[[type[Any]], Iterator[tuple[str, Callable[[], None]]]]
"""A part → the checks of its slot by name, in the order they are run."""


class Failed(Exception):
    """The part does not pass a check; the message names the fault, and its likely cause."""


@dataclass(frozen=True)
class CheckOutcome:
    """One line of the matrix; `message` names the fault and is empty if the check passed."""

    check: str
    passed: bool
    message: str


def apart(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> float:
    """Largest relative difference |expected - actual| / |expected| over tensors of the same names."""
    largest = max(float(tensor.norm()) for tensor in expected.values())
    differences = []
    for name, tensor in expected.items():
        # The floor keeps a tensor of mere rounding error from counting by its own tiny norm.
        scale = max(float(tensor.norm()), 1e-6 * largest, 1e-300)
        differences.append(float((tensor - actual[name]).norm()) / scale)
    return max(differences)


def variants(part: type[Any]) -> list[Any]:
    """The part under each of its SETTINGS."""
    return [part(**settings) for settings in part.SETTINGS]


def check_options(parts: list[Any], compute: Callable[[Any], dict[str, Tensor]], exempt: Collection[str] = ()) -> None:
    """Every option changes what is computed: two of the SETTINGS that differ in it alone give different tensors.

    Args:
        parts: the part under each of its SETTINGS (`variants`).
        compute: part → tensors by name.
        exempt: options that the engine reads and the part does not, besides SAME_RESULT.

    Raises:
        Failed: names an option that changes nothing.
    """
    part_class = type(parts[0])
    computed = [compute(part) for part in parts]
    unread = set(part_class.model_fields) - set(exempt) - set(part_class.SAME_RESULT)
    for (first, of_first), (second, of_second) in combinations(zip(parts, computed, strict=True), 2):
        differing = {name for name in part_class.model_fields if getattr(first, name) != getattr(second, name)}
        if len(differing) == 1 and _differ(of_second, of_first):
            unread -= differing
    if unread:
        raise Failed(
            f"no two SETTINGS that differ only in `{sorted(unread)[0]}` give different results: the option is not read,"
            " or SETTINGS lacks a set that shows it"
        )


def _differ(expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> bool:
    if expected.keys() != actual.keys():
        return True
    pairs = zip(expected.values(), actual.values(), strict=True)
    return any(tensor.shape != other.shape for tensor, other in pairs) or apart(expected, actual) > 1e-12
