"""Losses of a margin between the chosen and the rejected answer: tensors [P] → [P]."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from luthier.objectives.preference.base import PairView


def log_ratio_difference(view: PairView, reference: str = "initial") -> Tensor:
    """h = (log p - log q)(chosen) - (log p - log q)(rejected), q the reference's probability; summed over tokens."""
    return view.chosen.log_ratio(reference) - view.rejected.log_ratio(reference)


def report(view: PairView, margin: Tensor) -> None:
    """Meters: `margin`, and `accuracy`, the share of pairs with a margin above 0 (a tie counts half)."""
    view.meter("margin", margin)
    view.meter("accuracy", (margin > 0).float() + 0.5 * (margin == 0).float())


def smoothed(margin: Tensor, flips: float) -> Tensor:
    """-(1 - ε) log σ(m) - ε log σ(-m): the mean loss if a share ε of the labels is the wrong way round."""
    return -(1 - flips) * functional.logsigmoid(margin) - flips * functional.logsigmoid(-margin)


def robust(margin: Tensor, flips: float) -> Tensor:
    """[-(1 - ε) log σ(m) + ε log σ(-m)] / (1 - 2ε): its mean over flipped labels is the loss of the true ones."""
    return (flips * functional.logsigmoid(-margin) - (1 - flips) * functional.logsigmoid(margin)) / (1 - 2 * flips)


def hinge(margin: Tensor) -> Tensor:
    """max(0, 1 - m)."""
    return torch.relu(1 - margin)


def log1mexp(value: Tensor) -> Tensor:
    """log(1 - exp(a)) for a < 0, without loss of digits at either end (Mächler 2012); -0 is the least a."""
    value = value.clamp(max=-torch.finfo(value.dtype).tiny)
    near = value > -math.log(2)
    small = torch.where(near, value, value.new_full((), -1.0))
    large = torch.where(near, value.new_full((), -1.0), value)
    return torch.where(near, (-torch.expm1(small)).log(), torch.log1p(-large.exp()))


def log_odds(value: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p."""
    return value - log1mexp(value)
