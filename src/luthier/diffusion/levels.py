"""The straight path from data to noise (rectified flow), and the levels that a solver visits on it.

At level σ in [0,1] lies x = (1-σ) x₀ + σ ε, with velocity ε - x₀. Arrays are [R,...], levels [R].
Source: arXiv 2209.03003, where time runs the other way.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Prediction = Literal["velocity", "epsilon", "sample"]


def like(level: Tensor, x: Tensor) -> Tensor:
    """Levels [R] as [R,1,...] in the type of x [R,...], so that they broadcast over it."""
    return level.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))


def noised(x0: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """x = (1-σ) x₀ + σ ε [R,...] at levels σ [R]."""
    sigma = like(level, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_of(predicted: Tensor, kind: Prediction, x: Tensor, level: Tensor) -> Tensor:
    """The velocity ε - x₀ [R,...] that a prediction at x [R,...] and levels σ [R] implies.

    `epsilon` predicts ε and needs σ < 1, `sample` predicts x₀ and needs σ > 0; at the other end they divide by 0.
    """
    sigma = like(level, x)
    if kind == "epsilon":
        return (predicted - x) / (1 - sigma)
    if kind == "sample":
        return (x - predicted) / sigma
    return predicted


def solver_levels(steps: int, shift: float = 1.0) -> list[float]:
    """steps + 1 levels from 1 to 0; `shift` > 1 puts more of them near the noise (arXiv 2403.03206, eq. 23)."""
    even = [1 - index / steps for index in range(steps + 1)]
    return [shift * sigma / (1 + (shift - 1) * sigma) for sigma in even]
