"""Claims of proofs: one comparison each, and the verdict that the numbers over seeds allow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from luthier import stats
from luthier.errors import RecipeError
from luthier.proofs.results import FORMS

Outcome = Literal["holds", "fails", "undecided"]
BOUND = re.compile(r"([<>])\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)")
LEVEL = 0.95
UNTRAINED = "base"


class Claim(BaseModel):
    """`measure` of one arm, alone or compared with another's, lies beyond a bound.

    Exactly one of `value` (of the arm alone), `difference` and `ratio` (of `of` to `against`) is a bound such
    as "> 0.02". `of` and `against` are rows of the comparison's table, `base` included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    measure: str
    of: str
    against: str | None = None
    value: str | None = None
    difference: str | None = None
    ratio: str | None = None

    @field_validator(*FORMS)
    @classmethod
    def _readable(cls, bound: str | None) -> str | None:
        if bound is not None and not BOUND.fullmatch(bound.strip()):
            raise ValueError('a bound is written "> 0.02" or "< 1.5"')
        return bound

    @model_validator(mode="after")
    def _one_form(self) -> Claim:
        forms = [form for form in FORMS if getattr(self, form) is not None]
        if len(forms) != 1:
            raise ValueError("a claim has exactly one of `value`, `difference` and `ratio`")
        if (self.against is None) != (forms[0] == "value"):
            raise ValueError("`difference` and `ratio` need `against`; `value` has none")
        return self

    @property
    def form(self) -> str:
        """Which of `value`, `difference`, `ratio` is claimed."""
        return next(form for form in FORMS if getattr(self, form) is not None)

    @property
    def bound(self) -> tuple[str, float]:
        """The sign, `<` or `>`, and the number."""
        match = BOUND.fullmatch(getattr(self, self.form).strip())
        assert match is not None  # the field validator refuses other texts
        return match[1], float(match[2])


@dataclass(frozen=True)
class Measured:
    """One measure of one arm: a number per seed and, where it is a mean of item scores, these by item."""

    by_seed: Mapping[int, float]
    items: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """The outcome of a claim. `mean` with `low` and `high` was compared with the bound; None where it is unknown."""

    outcome: Outcome
    mean: float | None
    low: float | None
    high: float | None
    why: str

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def judge(claim: Claim, of: Measured, against: Measured | None = None) -> Verdict:
    """Whether a claim holds: the whole 95% interval must lie beyond the bound, or short of it.

    Where a measure is a mean over items, the interval carries doubt over seeds and over items
    (`stats.difference`, `stats.score_interval`); otherwise Student's over seeds, of the differences or ratios
    of runs of one seed.

    Raises:
        RecipeError: a ratio of scores, of which the interval would not know the items.
    """
    trained = [arm for arm, name in ((of, claim.of), (against, claim.against)) if arm and name != UNTRAINED]
    fewest = min((len(arm.by_seed) for arm in trained), default=0)
    if fewest < 2:
        return Verdict("undecided", None, None, None, f"{fewest} seed(s) done; it takes two to tell a method")
    interval = _interval(claim, of, against)
    if interval is None:
        return Verdict("undecided", None, None, None, "the arms share too few seeds or items")
    mean, low, high = interval
    sign, bound = claim.bound
    if (low > bound) if sign == ">" else (high < bound):
        return Verdict("holds", mean, low, high, "the whole interval lies beyond the bound")
    if (high <= bound) if sign == ">" else (low >= bound):
        return Verdict("fails", mean, low, high, "the whole interval falls short of the bound")
    return Verdict("undecided", mean, low, high, "the bound lies inside the interval")


def _interval(claim: Claim, of: Measured, against: Measured | None) -> tuple[float, float, float] | None:
    if of.items and claim.form == "ratio":
        raise RecipeError(f"`{claim.measure}` is a score: claim a `difference`, whose interval knows the items.")
    if of.items:
        return _of_items(claim, of, against)
    values = _of_seeds(claim, of, against)
    if len(values) < 2:
        return None
    interval = stats.mean_interval(values, LEVEL)
    return fmean(values), interval.low, interval.high


def _of_items(claim: Claim, of: Measured, against: Measured | None) -> tuple[float, float, float] | None:
    runs = [*of.items.values(), *(against.items.values() if against else ())]
    common = sorted(set.intersection(*(set(run) for run in runs)))
    if not common:
        return None
    scores = [[run[item] for item in common] for run in of.items.values()]
    if against is None:
        interval = stats.score_interval(scores, LEVEL)
        return fmean(fmean(run) for run in scores), interval.low, interval.high
    other = [[run[item] for item in common] for run in against.items.values()]
    if claim.of == UNTRAINED:  # `difference` takes the untrained arm as its baseline, so that the signs are reversed
        reverse = stats.difference(scores, other, untrained=True, level=LEVEL)
        return -reverse.delta, -reverse.high, -reverse.low
    change = stats.difference(other, scores, untrained=claim.against == UNTRAINED, level=LEVEL)
    return change.delta, change.low, change.high


def _of_seeds(claim: Claim, of: Measured, against: Measured | None) -> list[float]:
    if against is None:
        return list(of.by_seed.values())
    first, second = of.by_seed, against.by_seed
    if claim.of == UNTRAINED:  # its one evaluation is compared with every seed
        first = dict.fromkeys(second, fmean(first.values()))
    if claim.against == UNTRAINED:
        second = dict.fromkeys(first, fmean(second.values()))
    pairs = [(first[seed], second[seed]) for seed in first if seed in second]
    if claim.form == "difference":
        return [a - b for a, b in pairs]
    return [a / b for a, b in pairs] if all(b for _, b in pairs) else []
