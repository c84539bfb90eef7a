"""The warm-up that schedules share."""

from __future__ import annotations

from collections.abc import Callable


def warmed_up(progress: float, warmup: float, shape: Callable[[float], float]) -> float:
    """Learning-rate factor: from 0 to 1 in a straight line over `warmup`, then `shape` of the share of the rest.

    Args:
        progress: share of the budget, 0 to 1.
        warmup: share of the budget, 0 to 1.
        shape: factor at the share 0 to 1 of what comes after the warm-up.
    """
    if progress < warmup:
        return progress / warmup
    return shape((progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0)
