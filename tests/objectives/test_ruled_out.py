"""A model that rules tokens out gives them a logit of -inf: losses and gradients stay finite."""

import numpy
import pytest
import torch
from torch import nn

from luthier import parts
from luthier.conformance import tiny
from luthier.conformance.base import variants
from luthier.conformance.needs_of import rows_for
from luthier.conformance.training import trained
from luthier.engine.trainer import Batching
from luthier.objectives import _divergence
from support.oracle import gradient_of

RULED_OUT = [2, 17, 40]
TOKEN = [
    entry.name for entry in parts.catalogue("objective") if entry.constants.get("MODALITY", "language") == "language"
]


def without(logits, places):
    return tuple(float("-inf") if index in places else value for index, value in enumerate(logits))


@pytest.fixture
def ruling(monkeypatch):
    """The matrix's tiny model with an output bias of -inf at RULED_OUT, none of which is a token of its data."""
    model = tiny.tiny_model

    def ruling_model(dtype=torch.float64, seed=0):
        ruled = model(dtype, seed)
        bias = torch.zeros(tiny.VOCABULARY, dtype=dtype)
        bias[RULED_OUT] = float("-inf")
        ruled.lm_head.bias = nn.Parameter(bias, requires_grad=False)
        return ruled

    monkeypatch.setattr(tiny, "tiny_model", ruling_model)


def allowed(rows):
    """The rows with another token in place of those that are ruled out."""
    for row in rows:
        row.ids[numpy.isin(row.ids, RULED_OUT)] = 3
    return rows


@pytest.mark.parametrize("name", TOKEN)
def test_weights_and_losses_stay_finite(ruling, name):
    """With LoRA, whose frozen output embedding keeps its bias; under every one of the objective's SETTINGS."""
    for objective in variants(parts.load("objective", name)):
        rows, events = allowed(rows_for(objective)), []
        tuner = parts.build("tuner", "lora")
        change = trained(objective, tuner, Batching(8, 60), rows, observe=events.append)
        assert all(bool(torch.isfinite(value).all()) for value in change.values()), objective
        assert any(bool(value.any()) for value in change.values()), objective
        assert all(torch.isfinite(torch.tensor(float(events[0][key]))) for key in ("loss", "nll")), objective


LOGITS, REFERENCE = (2.0, 1.0, 0.0, -1.0), (1.0, 1.0, 0.5, 0.0)


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "asft", "kl_weight": 0.5},
        {"kind": "asft", "kl_weight": 0.5, "kl_direction": "reverse"},
        {"kind": "otr", "estimator": "exact"},
        {"kind": "otr"},
        {"kind": "dft"},
        {"kind": "entropy"},
    ],
)
def test_a_token_that_is_ruled_out_is_as_one_that_is_not_there(options):
    """The last of four tokens ruled out, by model and reference alike: loss and gradient of the other three alone."""
    objective = parts.build("objective", options)
    loss, gradient = gradient_of(objective, logits=without(LOGITS, [3]), reference=without(REFERENCE, [3]))
    wanted, of_three = gradient_of(objective, logits=LOGITS[:3], reference=REFERENCE[:3])
    assert loss == pytest.approx(wanted, rel=1e-14)
    assert torch.allclose(gradient[:3], of_three, rtol=1e-13, atol=0) and float(gradient[3]) == 0.0


@pytest.mark.parametrize("divergence", [_divergence.kl_from_reference, _divergence.kl_to_reference])
@pytest.mark.parametrize("ruled", [(True, False), (False, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ruled_out_by_one_alone_is_far_but_a_number(divergence, ruled, dtype):
    """Where one of both rules a token out the divergence is infinite, and is held at a finite number."""
    pair = [without(values, [3] if out else []) for values, out in zip((LOGITS, REFERENCE), ruled, strict=True)]
    logits = torch.tensor([pair[0]], dtype=dtype, requires_grad=True)
    value = divergence(logits, torch.tensor([pair[1]], dtype=dtype))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(gradient).all())
