"""Parts as a recipe writes them: a block with `kind`, a list of such blocks, a weighted sum."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

SUMS: dict[tuple[str, ...], tuple[str, str]] = {
    ("train", "objective"): ("objective", "coefficient"),
    ("reward",): ("reward", "weight"),
}
"""Where a list is a weighted sum: the key of the part and of its factor in each item."""


def part(value: Any) -> dict[str, Any]:
    """A block with `kind`."""
    if isinstance(value, Mapping) and isinstance(value.get("kind"), str):
        return dict(value)
    raise ValueError("expected the name of a part or a block with `kind`")


def tuner(value: Any) -> Any:
    """A part, or a list of them."""
    if isinstance(value, list):
        if not value:
            raise ValueError("the list is empty: name at least one tuner")
        return [part(member) for member in value]
    return part(value)


def objective(value: Any) -> Any:
    """A part, or a weighted sum."""
    return _sum(value, ("train", "objective")) if isinstance(value, list) else part(value)


def _sum(value: list[Any], path: tuple[str, ...]) -> list[dict[str, Any]]:
    key, factor = SUMS[path]
    if not value:
        raise ValueError(f"the list is empty: name at least one {key}")
    return [_summand(member, key, factor) for member in value]


def _summand(member: Any, key: str, factor: str) -> dict[str, Any]:
    if not isinstance(member, Mapping) or set(member) != {key, factor}:
        raise ValueError(f"each item of a sum is a part, or a block of `{key}` and `{factor}`")
    if not is_number(member[factor]):
        raise ValueError(f"`{factor}` is a finite number, found {str(member[factor])[:40]}")
    return {key: part(member[key]), factor: float(member[factor])}


def is_number(value: Any) -> bool:
    """Whether a value is a number, not a truth value, that a float can hold: neither infinite nor NaN."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def reward(value: Any) -> Any:
    """`auto`, or a weighted sum."""
    if value == "auto":
        return value
    if not isinstance(value, list):
        raise ValueError("expected `auto`, the name of a reward, or a list of rewards")
    return _sum(value, ("reward",))


def chain(value: Any) -> list[dict[str, Any]]:
    """A list of parts."""
    if not isinstance(value, list) or not value:
        raise ValueError("expected a part or a list of parts, applied in written order")
    return [part(member) for member in value]


def strategy(value: Any) -> dict[str, Any]:
    """A block without `kind` sets options of the default strategy."""
    return part({"kind": "plain", **value} if isinstance(value, Mapping) else value)


def part_or_null(value: Any) -> Any:
    """A part, or none."""
    return None if value is None else part(value)


def metric(value: Any) -> Any:
    """`auto`, or a part."""
    return value if value == "auto" else part(value)
