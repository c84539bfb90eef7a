"""simpo: the number of the card, and that no reference is read."""

import math

import pytest

from luthier import parts
from support.pair_oracle import loss_and_gradients


def simpo(**options):
    return parts.build("objective", {"kind": "simpo", **options})


def test_card():
    assert loss_and_gradients(simpo(beta=2.0, gamma=1.0))[0] == pytest.approx(0.313262, abs=1e-6)


def test_no_reference_and_gamma_asks_for_more():
    plain = loss_and_gradients(simpo())
    assert plain == loss_and_gradients(simpo(), reference=(-3.0, -40.0))
    assert loss_and_gradients(simpo(gamma=0.0))[0] < plain[0] < loss_and_gradients(simpo(gamma=2.0))[0]


def test_equal_means_give_log_two_whatever_the_lengths():
    loss, _ = loss_and_gradients(simpo(gamma=0.0), chosen=-10.0, rejected=-8.0)
    assert loss == pytest.approx(math.log(2))
