"""DiffusionNFT's optimality: from the rewards of groups of samples to the probability that each is optimal.

Source: arXiv 2509.16117 and its released code.
"""

from __future__ import annotations

from typing import Literal

import numpy

Mode = Literal["all", "positive_only", "negative_only", "one_only", "binary"]


def advantages(rewards: numpy.ndarray) -> numpy.ndarray:
    """Rewards [G,K] minus the mean of their group, over the population standard deviation of all rewards + 1e-4."""
    # A group of equal rewards gets exactly 0: the mean of equal numbers may differ from them in the last bit.
    equal = rewards.min(1, keepdims=True) == rewards.max(1, keepdims=True)
    means = numpy.where(equal, rewards[:, :1], rewards.mean(1, keepdims=True))
    return (rewards - means) / (rewards.std() + 1e-4)


def optimality(advantage: numpy.ndarray, clip: float = 5.0, mode: Mode = "all") -> numpy.ndarray:
    """r = (clip(A, ±clip)/clip + 1) / 2 in [0,1], like A; a sample of 1/2 is neither good nor bad.

    `positive_only`, `negative_only`: the other sign counts as 0; `one_only`: A is 1 where positive, else 0;
    `binary`: A is its sign.
    """
    kept = advantage.clip(-clip, clip)
    if mode == "positive_only":
        kept = kept.clip(0, None)
    elif mode == "negative_only":
        kept = kept.clip(None, 0)
    elif mode == "one_only":
        kept = (kept > 0).astype(kept.dtype)
    elif mode == "binary":
        kept = numpy.sign(kept)
    return (kept / clip / 2 + 0.5).clip(0.0, 1.0)


def group_filter(rewards: numpy.ndarray, min_std: float, max_mean: float) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Which groups of rewards [G,K] are trained on, and which prompts are solved and not drawn again: bool [G] each.

    Trained on: standard deviation above `min_std` and mean below `max_mean`. Solved: both the other way.
    """
    std, mean = rewards.std(1), rewards.mean(1)
    return (std > min_std) & (mean < max_mean), (std < min_std) & (mean > max_mean)


def return_decay(step: int, kind: Literal[0, 1, 2]) -> float:
    """The share of its weights that the `old` set keeps after a rollout, when `step` updates were made in all.

    Kind 0: 0; 1: 0.001 · step, at most 0.5; 2: 0 before step 75, then 0.0075 · (step - 75), at most 0.999.
    """
    if kind == 0:
        return 0.0
    if kind == 1:
        return min(0.001 * step, 0.5)
    return 0.0 if step < 75 else min(0.0075 * (step - 75), 0.999)
