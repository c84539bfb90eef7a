"""orpo: the numbers of the card, odds at both ends, and its two divisors."""

import pytest
import torch

from luthier import parts
from luthier.objectives.preference import _margins
from support.pair_oracle import card_pair

COUNTS = {"chosen_targets": 5.0, "records": 1.0}


def orpo(**options):
    return parts.build("objective", {"kind": "orpo", **options})


def total(objective):
    return sum(float(term.total.detach()) / COUNTS[term.unit] for term in objective.terms_of(card_pair()))


def test_card():
    view = card_pair()
    odds = _margins.log_odds(view.chosen.mean) - _margins.log_odds(view.rejected.mean)
    assert float(odds.detach()) == pytest.approx(1.094344, abs=1e-6)
    assert total(orpo(weight=0.1)) == pytest.approx(2.028875, abs=1e-6)


def test_without_weight_it_is_the_likelihood_of_the_chosen_answer():
    assert total(orpo(weight=0.0)) == pytest.approx(2.0)


def test_log1mexp_at_both_ends():
    value = torch.tensor([-1e-12, -0.1, -0.6931, -5.0, -60.0], dtype=torch.float64, requires_grad=True)
    wanted = torch.log(-torch.expm1(value.detach()))
    assert torch.allclose(_margins.log1mexp(value).detach(), wanted, rtol=1e-12)
    assert torch.autograd.gradcheck(_margins.log1mexp, (value[1:4].detach().requires_grad_(),))
    certain = torch.zeros(1, requires_grad=True)
    odds = _margins.log_odds(certain)
    odds.sum().backward()
    assert bool(torch.isfinite(odds).all()) and bool(torch.isfinite(certain.grad).all())
