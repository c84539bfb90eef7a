"""asft: the numbers of the card; they tell the two directions of the divergence apart."""

import pytest
import torch

from luthier import parts
from luthier.objectives import _divergence
from luthier.update import Update
from support.oracle import gradient_of, view_of


def asft(**options):
    return parts.build("objective", {"kind": "asft", **options})


def close(gradient, wanted):
    return torch.allclose(gradient, torch.tensor(wanted).double(), atol=1e-6)


def test_card_forward():
    loss, gradient = gradient_of(asft())
    assert abs(loss - 0.353135) < 1e-6
    assert close(gradient, [0.167918, -0.185735, 0.014804, 0.003013])


def test_card_reverse():
    loss, gradient = gradient_of(asft(kl_direction="reverse"))
    assert abs(loss - 0.352063) < 1e-6
    assert close(gradient, [0.166432, -0.187500, 0.015988, 0.005080])


def test_card_sft_plus_kl():
    loss, gradient = gradient_of(asft(prob_power=0.0))
    assert abs(loss - 1.452169) < 1e-6
    assert close(gradient, [0.659300, -0.768083, 0.081306, 0.027477])


def test_divergences():
    view = view_of(None)
    reference = view.logits_of("initial")
    assert abs(float(_divergence.kl_from_reference(view.logits.detach(), reference)) - 0.239582) < 1e-6
    assert abs(float(_divergence.kl_to_reference(view.logits.detach(), reference)) - 0.218140) < 1e-6
    assert torch.autograd.gradcheck(lambda z: _divergence.kl_from_reference(z, reference), (view.logits,))


@pytest.mark.parametrize("weight, wanted", [(0.05, 0.967377), (0.5, 0.730209)])
def test_stationary_point(weight, wanted):
    z = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    for _ in range(20_000):
        _, gradient = gradient_of(asft(kl_weight=weight), logits=tuple(z.tolist()))
        z = z - 2.0 * gradient
        if float(gradient.norm()) < 1e-9:
            break
    assert abs(float(torch.softmax(z, -1)[1]) - wanted) < 1e-5


def test_limits():
    dft = gradient_of(parts.build("objective", "dft"))
    none = gradient_of(asft(kl_weight=0.0))
    assert none[0] == pytest.approx(dft[0]) and torch.allclose(none[1], dft[1])
    same = (2.0, 1.0, 0.0, -1.0)
    at_start = gradient_of(asft(kl_weight=5.0), reference=same)
    assert at_start[0] == pytest.approx(dft[0]) and torch.allclose(at_start[1], dft[1], atol=1e-12)


def test_reports_the_divergence():
    update = Update(1, 0)
    gradient_of(asft(), update=update)
    assert update.meters["kl"][1] == pytest.approx(0.239582, abs=1e-6)
