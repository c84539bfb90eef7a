"""From the rewards of groups of samples to the probability that each is optimal, and which groups teach anything."""

from __future__ import annotations

from typing import Literal

import numpy

Mode = Literal["all", "positive_only", "negative_only", "one_only", "binary"]


def advantages(rewards: numpy.ndarray) -> numpy.ndarray:
    """Rewards [G,K] less their group's mean, over the standard deviation of all (population) + 1e-4.

    A group of equal rewards gets exactly 0: the mean of equal numbers may be off in the last bit.
    """
    equal = rewards.min(1, keepdims=True) == rewards.max(1, keepdims=True)
    means = numpy.where(equal, rewards[:, :1], rewards.mean(1, keepdims=True))
    return (rewards - means) / (rewards.std() + 1e-4)


def optimality(advantage: numpy.ndarray, clip: float = 5.0, mode: Mode = "all") -> numpy.ndarray:
    """r = (clip(A, ±clip)/clip + 1) / 2 in [0,1]; 1/2 says nothing about a sample.

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
    """Which groups of rewards [G,K] are trained on [G], and which prompts are solved and never drawn again [G].

    Trained on: spread above `min_std` and mean below `max_mean`. Solved: spread below and mean above.
    """
    spread, mean = rewards.std(1), rewards.mean(1)
    return (spread > min_std) & (mean < max_mean), (spread < min_std) & (mean > max_mean)


def return_decay(step: int, kind: Literal[0, 1, 2]) -> float:
    """Share of itself that `old` keeps after a rollout, when `step` updates are done in all.

    Kind 0: nothing; 1: 0.001 · step, at most 0.5; 2: nothing before step 75, then 0.0075 · (step - 75), at most 0.999.
    """
    if kind == 0:
        return 0.0
    if kind == 1:
        return min(0.001 * step, 0.5)
    return 0.0 if step < 75 else min(0.0075 * (step - 75), 0.999)
