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
    """-(1 - ε) log σ(m) - ε log σ(-m): the expected loss if a share ε of the labels is flipped."""
    return -(1 - flips) * functional.logsigmoid(margin) - flips * functional.logsigmoid(-margin)


def robust(margin: Tensor, flips: float) -> Tensor:
    """[-(1 - ε) log σ(m) + ε log σ(-m)] / (1 - 2ε): its expectation over flipped labels is the loss of true labels."""
    return (flips * functional.logsigmoid(-margin) - (1 - flips) * functional.logsigmoid(margin)) / (1 - 2 * flips)


def hinge(margin: Tensor) -> Tensor:
    """max(0, 1 - m)."""
    return torch.relu(1 - margin)


def log1mexp(a: Tensor) -> Tensor:
    """log(1 - exp(a)) for a < 0, accurate near 0 and near -inf (Mächler 2012); a = 0 is taken as the largest a < 0."""
    a = a.clamp(max=-torch.finfo(a.dtype).tiny)
    near_zero = a > -math.log(2)
    # Each branch gets a harmless -1 where the other one counts: `where` multiplies the unused branch's gradient by 0,
    # and 0 · inf would be NaN.
    small = torch.where(near_zero, a, a.new_full((), -1.0))
    large = torch.where(near_zero, a.new_full((), -1.0), a)
    return torch.where(near_zero, (-torch.expm1(small)).log(), torch.log1p(-large.exp()))


def log_odds(log_p: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p."""
    return log_p - log1mexp(log_p)
