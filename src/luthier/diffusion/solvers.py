"""Solvers: from noise to a sample along a denoiser's velocity. Deterministic; the noise is the only chance."""

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
    """One straight step from each level (falling from 1 to 0) to the next."""
    x = noise
    for here, there in pairwise(levels):
        x = x + (there - here) * velocity(x, _level(x, here))
    return x


def dpm2(velocity: Velocity, noise: Tensor, levels: Sequence[float], order: int = 2) -> Tensor:
    """DPM-Solver++ of second order, multistep: each step also uses the previous prediction of the clean sample.

    Written in λ = log((1-σ)/σ); the first step and the last, where λ has no end, are of first order, which is
    `euler`. Source: arXiv 2211.01095, algorithm 2, on the straight path.
    """
    x, previous, gap = noise, None, math.inf
    for index, (here, there) in enumerate(pairwise(levels)):
        clean = x - here * velocity(x, _level(x, here))
        step = _log_ratio(there) - _log_ratio(here)
        guess = clean
        if order == 2 and previous is not None and index < len(levels) - 2:
            guess = clean + step / (2 * gap) * (clean - previous)
        x = there / here * x + (1 - there - (1 - here) * there / here) * guess
        previous, gap = clean, step
    return x


def _log_ratio(level: float) -> float:
    if level in (0.0, 1.0):
        return math.inf if level == 0.0 else -math.inf
    return math.log((1 - level) / level)


def _level(x: Tensor, level: float) -> Tensor:
    return torch.full((len(x),), level, dtype=x.dtype, device=x.device)


SOLVERS: Mapping[str, Solver] = {"euler": euler, "dpm2": partial(dpm2, order=2)}
