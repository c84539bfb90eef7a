"""ipo: the numbers of the card in both forms, and where it stops."""

import pytest

from luthier import parts
from support.pair_oracle import loss_and_gradients


def ipo(**options):
    return parts.build("objective", {"kind": "ipo", **options})


@pytest.mark.parametrize("form, wanted", [("summed", 9.0), ("averaged", 20.7025)])
def test_card(form, wanted):
    assert loss_and_gradients(ipo(log_ratio=form))[0] == pytest.approx(wanted, abs=1e-9)


def test_the_pull_ends_at_the_margin_and_turns_round_beyond():
    at = loss_and_gradients(ipo(log_ratio="summed"), chosen=-7.0)  # h = 5 = 1 / (2 * 0.1)
    assert at == (pytest.approx(0.0), (pytest.approx(0.0), pytest.approx(0.0)))
    assert loss_and_gradients(ipo(log_ratio="summed"), chosen=-6.0)[1][0] > 0


def test_averaged_gradients_are_divided_by_the_lengths():
    _, (chosen, rejected) = loss_and_gradients(ipo())
    assert chosen * 5 == pytest.approx(-rejected * 4)
