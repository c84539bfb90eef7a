"""Planted faults of advantages are caught by the check that is meant for them."""

import re

import numpy
import pytest

from luthier.conformance.base import Failed
from luthier.conformance.matrix import checks_of
from luthier.rollouts.base import Advantage


class WholeMean(Advantage):
    """Counts an answer without a reward."""

    def compute(self, rollout, values):
        totals = rollout.totals(values)
        return totals - totals.mean()


class InPlace(Advantage):
    def compute(self, rollout, values):
        for value in values:
            value *= 2
        return values


class Random(Advantage):
    def compute(self, rollout, values):
        return rollout.totals(values) + numpy.random.default_rng().random()


class Unread(Advantage):
    SETTINGS = ({}, {"scale": 2.0})
    scale: float = 1.0

    def compute(self, rollout, values):
        return rollout.totals(values)


class AgainstTheFirst(Advantage):
    def compute(self, rollout, values):
        totals = rollout.totals(values)
        return totals - numpy.nanmean(totals[rollout.group_of == 0])


class OneEach(Advantage):
    def compute(self, rollout, values):
        return [value[:1] for value in values]


class OneTooFew(Advantage):
    def compute(self, rollout, values):
        return rollout.totals(values)[:-1]


@pytest.mark.parametrize(
    "part, check, words",
    [
        (OneTooFew, "one finite", "`compute` returns numbers for 11 of 12 answers"),
        (WholeMean, "one finite", "without a reward"),
        (OneEach, "one finite", "not one number per token"),
        (InPlace, "deterministic", "copy them"),
        (Random, "deterministic", "random call"),
        (Unread, "every option", "`scale`"),
        (AgainstTheFirst, "independent", "in another order"),
    ],
)
def test_planted_fault_is_caught(part, check, words):
    run_check = next(function for name, function in checks_of("advantage", part) if name.startswith(check))
    with pytest.raises(Failed, match=re.escape(words)):
        run_check()
