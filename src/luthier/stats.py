"""The intervals and tests behind every table. Pure Python.

Shapes: an arm is `scores[S][N]`, one list of N item scores in [0, 1] per seed; the items of two arms
are the same, in the same order.

The rule for a difference of two arms over S seeds and N items:
SE^2 = max((seed variance of a + seed variance of b) / S, variance of the item differences / N),
where an item's difference is taken between its means over seeds; t with 2(S-1) degrees of freedom;
Holm over all comparisons of one table. One seed says nothing about another training run, so that only a statement
about these two models on these items is left: an exact paired test over items.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance
from typing import Literal

Scores = Sequence[Sequence[float]]
EXACT_FLIPS = 14
RANDOM_FLIPS = 9_999


@dataclass(frozen=True)
class Interval:
    """Both ends of an interval around a mean score."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """`other - baseline`, with its interval and test.

    `about` is "methods" when both arms have at least two seeds (an untrained baseline needs none) and
    "models" otherwise. `p` is two-sided and not yet adjusted for the other rows of a table.
    `wins` and `losses` count items whose score, averaged over seeds, is higher or lower.
    """

    delta: float
    low: float
    high: float
    p: float
    standard_error: float
    about: Literal["methods", "models"]
    items: int
    wins: int
    losses: int


def difference(baseline: Scores, other: Scores, *, untrained: bool = False, level: float = 0.95) -> Difference:
    """Compare two arms over their seeds, or over items alone when an arm has one seed.

    Args:
        baseline: `[S][N]`.
        other: `[S][N]`; its number of seeds may differ, when a run failed.
        untrained: the baseline is the base model: no seed, no seed variance.
        level: of the interval.

    Raises:
        ValueError: arms without runs or items, or of different items.
    """
    items = len(baseline[0]) if baseline else 0
    if not other or not items or any(len(run) != items for run in (*baseline, *other)):
        raise ValueError("Both arms need at least one run, and all runs the same items.")
    if len(other) > 1 and (untrained or len(baseline) > 1):
        return _over_seeds(baseline, other, untrained, level)
    return _over_items(baseline[0], other[0], level)


def _over_seeds(baseline: Scores, other: Scores, untrained: bool, level: float) -> Difference:
    arms = [other] if untrained else [baseline, other]
    over_seeds = 0.0
    for arm in arms:
        over_seeds += variance(fmean(run) for run in arm) / len(arm)
    changes = [b - a for a, b in zip(item_means(baseline), item_means(other), strict=True)]
    error = _standard_error(changes, over_seeds)
    degrees = sum(len(arm) - 1 for arm in arms)
    delta = fmean(changes)
    reach = student_quantile(0.5 + level / 2, degrees) * error
    return Difference(
        delta=delta,
        low=max(-1.0, delta - reach),
        high=min(1.0, delta + reach),
        p=student_p(delta / error, degrees),
        standard_error=error,
        about="methods",
        items=len(changes),
        wins=sum(change > 0 for change in changes),
        losses=sum(change < 0 for change in changes),
    )


def _over_items(baseline: Sequence[float], other: Sequence[float], level: float) -> Difference:
    changes = [b - a for a, b in zip(baseline, other, strict=True)]
    delta = fmean(changes)
    error = _standard_error(changes, 0.0)
    reach = student_quantile(0.5 + level / 2, max(1, len(changes) - 1)) * error
    return Difference(
        delta=delta,
        low=max(-1.0, delta - reach),
        high=min(1.0, delta + reach),
        p=sign_flip_p(changes),
        standard_error=error,
        about="models",
        items=len(changes),
        wins=sum(change > 0 for change in changes),
        losses=sum(change < 0 for change in changes),
    )


def _standard_error(changes: Sequence[float], over_seeds: float) -> float:
    over_items = variance(changes) / len(changes) if len(changes) > 1 else 0.25
    squared = max(over_seeds, over_items)
    # All items moved alike and all seeds agree: N items cannot show less than half an item of doubt.
    return math.sqrt(squared) if squared > 0 else 0.5 / len(changes)


def item_means(scores: Scores) -> list[float]:
    """Each item's mean over seeds: `[S][N]` to `[N]`."""
    return [fmean(column) for column in zip(*scores, strict=True)]


def score_interval(scores: Scores, level: float = 0.95) -> Interval:
    """Interval of one arm's mean: the wider of doubt over items and, with several seeds, over seeds.

    Over items: Wilson's interval when all scores are 0 or 1 (with several seeds it is taken at their mean,
    which is conservative), Student's otherwise. Over seeds: Student's with S-1 degrees of freedom.

    Args:
        scores: `[S][N]`.
        level: of the interval.
    """
    items, mean = item_means(scores), fmean(fmean(run) for run in scores)
    if all(score in (0.0, 1.0) for run in scores for score in run):
        interval = wilson(mean, len(items), level)
    else:
        reach = student_quantile(0.5 + level / 2, max(1, len(items) - 1)) * _standard_error(items, 0.0)
        interval = Interval(mean - reach, mean + reach)
    if len(scores) > 1:
        spread = math.sqrt(variance(fmean(run) for run in scores) / len(scores))
        reach = student_quantile(0.5 + level / 2, len(scores) - 1) * spread
        interval = Interval(min(interval.low, mean - reach), max(interval.high, mean + reach))
    return Interval(max(0.0, interval.low), min(1.0, interval.high))


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's interval of the mean of at least two numbers, such as one per seed."""
    mean = fmean(values)
    reach = student_quantile(0.5 + level / 2, len(values) - 1) * math.sqrt(variance(values) / len(values))
    return Interval(mean - reach, mean + reach)


def wilson(share: float, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share seen in n items."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(max(0.0, centre - reach), min(1.0, centre + reach))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given: reject where the result is below the level."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def sign_flip_p(changes: Sequence[float]) -> float:
    """Two-sided p of paired differences when each sign is a fair coin.

    Exact for differences of one size (0/1 scores: McNemar's exact test) and for few non-zero ones;
    otherwise over 9,999 flips drawn from a fixed seed, so that a table repeats.
    """
    moved = [change for change in changes if change]
    if not moved:
        return 1.0
    if len({abs(change) for change in moved}) == 1:
        return _binomial_p(sum(change > 0 for change in moved), len(moved))
    observed = abs(math.fsum(moved)) - 1e-9  # flips that give the same sum count, whatever the order of its rounding
    if len(moved) <= EXACT_FLIPS:
        sums = [abs(total) for total in _sums_of_flips(moved)]
        return sum(flipped >= observed for flipped in sums) / len(sums)
    # With the 256 sums of every block of eight items one flip costs N/8 look-ups instead of N draws.
    blocks = [moved[start : start + 8] for start in range(0, len(moved), 8)]
    tables = [_sums_of_flips(block) for block in blocks]
    draw, hits = random.Random(0), 0
    for _ in range(RANDOM_FLIPS):
        hits += abs(math.fsum(draw.choice(table) for table in tables)) >= observed
    return (hits + 1) / (RANDOM_FLIPS + 1)  # the observed signs are one of the flips


def _sums_of_flips(changes: Sequence[float]) -> list[float]:
    """The sum of n differences under each of the 2^n choices of their signs."""
    signs = ((change, -change) for change in changes)
    return [math.fsum(flipped) for flipped in itertools.product(*signs)]


def _binomial_p(wins: int, n: int) -> float:
    tail = sum(math.comb(n, k) for k in range(min(wins, n - wins) + 1))
    return min(1.0, 2 * tail / 2**n)


def student_p(t: float, degrees: float) -> float:
    """Two-sided p of Student's t: P(|T| >= |t|)."""
    if t * t < 1:  # of two equal forms, the one that keeps its digits
        return 1 - incomplete_beta(t * t / (degrees + t * t), 0.5, degrees / 2)
    return incomplete_beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def student_quantile(probability: float, degrees: float) -> float:
    """The t below which Student's distribution has this probability (0 < probability < 1)."""
    if not 0 < probability < 1:
        raise ValueError(f"A probability lies between 0 and 1, not {probability}.")
    if probability < 0.5:
        return -student_quantile(1 - probability, degrees)
    tail = 2 * (1 - probability)
    low, high = 0.0, 1.0
    while student_p(high, degrees) > tail:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if student_p(middle, degrees) > tail else (low, middle)
    return (low + high) / 2


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - incomplete_beta(1 - x, b, a)
    log_front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return math.exp(log_front) / (a * _beta_fraction(x, a, b))


def _beta_fraction(x: float, a: float, b: float) -> float:
    """1 + d1/(1 + d2/(1 + ...)) by the modified Lentz algorithm."""
    tiny = 1e-300
    fraction, c, d = 1.0, 1.0, 0.0
    for step in range(1, 2_000):
        m = step // 2
        if step % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / ((1 + term * d) or tiny)
        c = (1 + term / c) or tiny
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return fraction
