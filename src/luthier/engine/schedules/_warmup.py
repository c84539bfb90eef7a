"""The warm-up that schedules share."""

from __future__ import annotations

from collections.abc import Callable


def warmed_up(progress: float, warmup: float, shape: Callable[[float], float]) -> float:
    """Learning-rate factor: linear from 0 to 1 over `warmup`, then `shape`.

    Args:
        progress: share of the budget, 0 to 1.
        warmup: share of the budget, 0 to 1.
        shape: share of the budget after the warm-up, 0 to 1 → factor.
    """
    if progress < warmup:
        return progress / warmup
    return shape((progress - warmup) / (1.0 - warmup) if warmup < 1.0 else 1.0)
