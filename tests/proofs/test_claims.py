"""Verdicts on made-up numbers whose intervals are known from tables of Student's t."""

import pytest
from pydantic import ValidationError

from luthier.errors import RecipeError
from luthier.proofs.claims import Claim, Measured, judge
from luthier.proofs.results import mark

BASE = Measured({0: 0.5}, {0: {str(n): float(n % 2) for n in range(40)}})


def claim(**changed):
    given = {"text": "x", "measure": "train.tokens", "of": "dft", "against": "sft", "difference": "> 0"}
    return Claim(**{key: value for key, value in (given | changed).items() if value is not None})


def seeds(*values):
    return Measured(dict(enumerate(values)))


def scored(*shares, number=40):
    """Runs of `number` items with that share right, always the first ones."""
    items = {seed: {str(n): float(n < share * number) for n in range(number)} for seed, share in enumerate(shares)}
    return Measured(dict(enumerate(shares)), items)


def test_interval_is_students_over_paired_seeds():
    found = judge(claim(), seeds(3.0, 5.0, 7.0), seeds(2.0, 3.0, 4.0))  # differences 1, 2, 3
    assert found.mean == 2
    assert found.low == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert found.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)


@pytest.mark.parametrize(
    ("bound", "outcome"),
    [("> -1", "holds"), ("> 0", "undecided"), ("> 2", "undecided"), ("> 4.5", "fails"), ("> 4", "undecided")],
)
def test_a_mean_beyond_the_bound_is_not_enough(bound, outcome):
    assert judge(claim(difference=bound), seeds(3.0, 5.0, 7.0), seeds(2.0, 3.0, 4.0)).outcome == outcome


@pytest.mark.parametrize(("bound", "outcome"), [("< 4.5", "holds"), ("< 4", "undecided"), ("< -1", "fails")])
def test_smaller_than(bound, outcome):
    assert judge(claim(difference=bound), seeds(3.0, 5.0, 7.0), seeds(2.0, 3.0, 4.0)).outcome == outcome


def test_exact_numbers_are_decided_also_at_the_bound():
    tokens = claim(value="> 100", difference=None, against=None)
    assert judge(tokens, seeds(101, 101)).outcome == "holds"
    assert judge(tokens, seeds(100, 100)).outcome == "fails"


def test_ratio_is_of_runs_of_one_seed():
    found = judge(claim(difference=None, ratio="< 1.5"), seeds(2.0, 20.0), seeds(2.0, 20.0))
    assert (found.outcome, found.mean, found.low) == ("holds", 1, 1)


def test_seeds_that_one_arm_lacks_are_left_out():
    of, against = Measured({0: 2.0, 1: 3.0, 2: 99.0}), Measured({0: 1.0, 1: 2.0, 3: 50.0})
    assert judge(claim(), of, against).mean == 1
    assert judge(claim(), of, Measured({2: 1.0, 5: 1.0})).outcome == "undecided"


def test_one_seed_decides_nothing():
    found = judge(claim(), seeds(9.0), seeds(1.0, 2.0))
    assert found.outcome == "undecided"
    assert found.mean is None and "two" in found.why


def test_scores_doubt_their_items_too():
    """Two seeds that agree exactly: over seeds alone there would be no doubt at all."""
    close = claim(measure="target")
    few = judge(close, scored(0.6, 0.6, number=10), scored(0.5, 0.5, number=10))
    many = judge(close, scored(0.6, 0.6, number=1000), scored(0.5, 0.5, number=1000))
    assert few.mean == many.mean == pytest.approx(0.1)
    assert (few.outcome, many.outcome) == ("undecided", "holds")


def test_base_has_one_evaluation_and_no_seeds():
    forward = judge(claim(measure="target", against="base"), scored(0.9, 0.9, 0.95), BASE)
    backward = judge(claim(measure="target", of="base", against="dft", difference="< 0"), BASE, scored(0.9, 0.9, 0.95))
    assert forward.outcome == backward.outcome == "holds"
    assert (forward.mean, forward.low) == (-backward.mean, -backward.high)
    numbers = judge(claim(against="base"), seeds(2.0, 2.2, 2.1), Measured({0: 1.0}))
    assert numbers.mean == pytest.approx(1.1)


def test_score_of_one_arm():
    alone = claim(measure="target", difference=None, against=None, value="> 0.5")
    assert judge(alone, scored(0.9, 0.9)).outcome == "holds"
    assert judge(alone, scored(0.6, 0.6)).outcome == "undecided"


def test_ratio_of_scores_is_refused():
    with pytest.raises(RecipeError, match="difference"):
        judge(claim(measure="target", difference=None, ratio="> 1"), scored(0.9, 0.9), scored(0.5, 0.5))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"difference": "0.02"}, "> 0.02"),
        ({"difference": ">= 0.02"}, "> 0.02"),
        ({"value": "> 1"}, "exactly one"),
        ({"difference": None}, "exactly one"),
        ({"against": None}, "against"),
        ({"difference": None, "value": "> 1"}, "against"),
        ({"mesure": "x"}, "mesure"),
    ],
)
def test_malformed_claims(changed, said):
    with pytest.raises(ValidationError, match=said):
        claim(**changed)


def test_mark_of_all_claims():
    assert mark(["holds", "holds"]) == "proven"
    assert mark(["holds", "undecided"]) == "undecided"
    assert mark(["undecided", "fails", "holds"]) == "claim failed"
