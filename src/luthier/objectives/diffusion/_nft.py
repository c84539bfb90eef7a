"""DiffusionNFT's loss as functions of tensors: velocities [R,...], optimality probabilities r [R] → [R]."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.diffusion.levels import like

FLOOR = 1e-5
"""Least divisor of `practical`: near level 0, x is the clean sample and every prediction has an error near 0."""


def implicit(trained: Tensor, old: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Velocities of the implicit positive and negative models: old ± beta (trained - old)."""
    return beta * trained + (1 - beta) * old, (1 + beta) * old - beta * trained


def theoretical(trained: Tensor, old: Tensor, target: Tensor, r: Tensor, beta: float) -> Tensor:
    """r |v₊ - v|² + (1-r) |v₋ - v|², means over dimensions: the theorem's loss; gradients to `trained` alone."""
    positive, negative = implicit(trained, old, beta)
    return r * _mean((positive - target).square()) + (1 - r) * _mean((negative - target).square())


def practical(
    trained: Tensor, old: Tensor, x: Tensor, clean: Tensor, level: Tensor, r: Tensor, beta: float, clip: float
) -> Tensor:
    """clip/beta · (r ℓ₊ + (1-r) ℓ₋), ℓ the squared error of the predicted clean sample over its mean absolute error.

    The released code's loss. The divisor has no gradient, is computed in float64 and is at least FLOOR.

    Args:
        x: the noised sample [R,...] at `level` [R] of `clean` [R,...].
    """
    sigma = like(level, x)
    losses = []
    for velocity in implicit(trained, old, beta):
        error = (x - sigma * velocity) - clean
        size = _mean(error.detach().double().abs()).clamp_min(FLOOR).to(error.dtype)
        losses.append(_mean(error.square()) / size)
    return clip * (r * losses[0] + (1 - r) * losses[1]) / beta


def distance(trained: Tensor, reference: Tensor) -> Tensor:
    """|v - v_reference|², mean over dimensions."""
    return _mean((trained - reference).square())


def _mean(values: Tensor) -> Tensor:
    return torch.flatten(values, 1).mean(1)
