"""dft: the numbers of the card; the undetached weight would fail here."""

import pytest
import torch

from luthier import parts
from luthier.update import Update
from support.oracle import gradient_of, view_of

GRADIENT = torch.tensor([0.152532, -0.180769, 0.020643, 0.007594]).double()


def test_card():
    loss, gradient = gradient_of(parts.build("objective", "dft"))
    assert abs(loss - 0.341156) < 1e-6
    assert torch.allclose(gradient, GRADIENT, atol=1e-6)


def test_gradient_is_that_of_minus_the_probability():
    view = view_of(None)
    (wanted,) = torch.autograd.grad(-view.logprob.exp().sum(), view.logits)
    assert torch.allclose(gradient_of(parts.build("objective", "dft"))[1], wanted[0], atol=1e-12)


def test_power_zero_is_sft_and_powers_differ():
    sft = gradient_of(parts.build("objective", "sft"))
    zero = gradient_of(parts.build("objective", {"kind": "dft", "prob_power": 0.0}))
    half = gradient_of(parts.build("objective", {"kind": "dft", "prob_power": 0.5}))
    assert zero[0] == pytest.approx(sft[0]) and torch.allclose(zero[1], sft[1])
    assert half[0] == pytest.approx(1.440190 * 0.236883**0.5, abs=1e-5)


def test_reports_the_mean_weight():
    update = Update(1, 0)
    gradient_of(parts.build("objective", "dft"), update=update)
    assert update.meters["mean_weight"][1] == pytest.approx(0.236883, abs=1e-6)
