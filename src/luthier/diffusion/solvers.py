"""Solvers: from noise to a sample along the velocity of a denoiser. The noise decides the sample: nothing is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [R,...], level [R]) → velocity like x."""
Solver = Callable[[Velocity, Tensor, Sequence[float]], Tensor]


def euler(velocity: Velocity, noise: Tensor, levels: Sequence[float]) -> Tensor:
    """Euler's method from noise [R,...]: one straight step from each level, falling from 1 to 0, to the next."""
    x = noise
    for current, following in pairwise(levels):
        x = x + (following - current) * velocity(x, _levels(x, current))
    return x


def dpm2(velocity: Velocity, noise: Tensor, levels: Sequence[float], order: int = 2) -> Tensor:
    """DPM-Solver++ of second order, multistep, from noise [R,...] along levels that fall from 1 to 0.

    Each step also uses the previous prediction of the clean sample, extrapolated in λ = log((1-σ)/σ). The first step
    and the last are of first order, which is `euler`. Source: arXiv 2211.01095, algorithm 2, on the straight path.
    """
    x, previous, previous_step = noise, None, math.inf
    for index, (current, following) in enumerate(pairwise(levels)):
        clean = x - current * velocity(x, _levels(x, current))
        step = _log_ratio(following) - _log_ratio(current)
        extrapolated = clean
        # λ is infinite at both ends: the first step has no previous prediction, the last no finite length.
        if order == 2 and previous is not None and index < len(levels) - 2:
            extrapolated = clean + step / (2 * previous_step) * (clean - previous)
        ratio = following / current
        x = ratio * x + (1 - following - (1 - current) * following / current) * extrapolated
        previous, previous_step = clean, step
    return x


def _log_ratio(level: float) -> float:
    if level in (0.0, 1.0):
        return math.inf if level == 0.0 else -math.inf
    return math.log((1 - level) / level)


def _levels(x: Tensor, level: float) -> Tensor:
    return torch.full((len(x),), level, dtype=x.dtype, device=x.device)


SOLVERS: Mapping[str, Solver] = {"euler": euler, "dpm2": partial(dpm2, order=2)}
