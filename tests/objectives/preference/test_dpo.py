"""dpo: the numbers of the card, its limits, and that it learns which of two answers is meant."""

import math

import pytest

from luthier import parts
from luthier.errors import RecipeError
from luthier.objectives.base import Update
from support.pair_oracle import loss_and_gradients


def dpo(**options):
    return parts.build("objective", {"kind": "dpo", **options})


@pytest.mark.parametrize(
    "options, wanted",
    [
        ({}, 0.598139),
        ({"label_smoothing": 0.1}, 0.618139),
        ({"loss": "robust", "label_smoothing": 0.1}, 0.573139),
        ({"loss": "hinge"}, 0.8),
    ],
)
def test_card(options, wanted):
    loss, _ = loss_and_gradients(dpo(**options))
    assert abs(loss - wanted) < 1e-6


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_at_the_reference_the_loss_is_log_two(beta):
    loss, (chosen, rejected) = loss_and_gradients(dpo(beta=beta), reference=(-10.0, -12.0))
    assert loss == pytest.approx(math.log(2), abs=1e-12)
    assert chosen == pytest.approx(-beta / 2, abs=1e-12) and rejected == pytest.approx(beta / 2, abs=1e-12)


def test_robust_is_unbiased_under_flips():
    flips = 0.2
    kept, _ = loss_and_gradients(dpo(loss="robust", label_smoothing=flips))
    flipped, _ = loss_and_gradients(dpo(loss="robust", label_smoothing=flips), chosen=-12.0, rejected=-10.0)
    clean, _ = loss_and_gradients(dpo())
    assert (1 - flips) * kept + flips * flipped == pytest.approx(clean, abs=1e-12)


def test_meters():
    update = Update(1, 0)
    loss_and_gradients(dpo(), update=update)
    assert update.meters["margin"][1] == pytest.approx(0.2) and update.meters["accuracy"][1] == 1.0
    update = Update(1, 0)
    loss_and_gradients(dpo(), reference=(-10.0, -12.0), update=update)
    assert update.meters["accuracy"][1] == 0.5


@pytest.mark.parametrize("options", [{"loss": "robust"}, {"loss": "hinge", "label_smoothing": 0.1}, {"beta": 0}])
def test_options_that_say_nothing_are_refused(options):
    with pytest.raises(RecipeError):
        dpo(**options)
