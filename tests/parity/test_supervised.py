"""asft, dft, ift and lfu's distance against the authors' code: values and gradients."""

import pytest
import torch

from luthier import parts
from luthier.objectives.base import TokenView, Update
from parity.golden import difference, golden, tensor

ASFT, DFT, IFT, LFU = golden("asft"), golden("dft"), golden("ift"), golden("lfu_distance")


class Given:
    """A reference whose hidden states are its logits."""

    def logits(self, hidden):
        return hidden


def of_logits(objective, logits, targets, where, reference=None):
    """Loss and gradient of an objective over the positions `where` [B,T] of logits [B,T,V]."""
    z = tensor(logits, requires_grad=True)
    rows = z[where]
    view = TokenView(
        logits=rows,
        targets=targets[where],
        streams={"weights": torch.ones(len(rows), dtype=torch.float64)},
        hidden_of={} if reference is None else {"initial": (Given(), tensor(reference)[where])},
        keys=torch.arange(len(rows)),
        record_targets=torch.full((len(rows),), len(rows)),
        update=Update(1, 0),
    )
    loss = objective.weighted(view).sum() / len(rows)
    return float(loss.detach()), torch.autograd.grad(loss, z)[0]


def asft_of(mode, kl_weight):
    if mode in ("sft", "dft"):
        return parts.build("objective", mode)
    power = 0.0 if mode == "sft+kl" else 1.0
    return parts.build("objective", {"kind": "asft", "kl_weight": kl_weight, "prob_power": power})


@pytest.mark.parametrize("case", ASFT["cases"], ids=lambda case: f"{case['mode']} {case['kl_weight']}")
def test_asft(case):
    labels = torch.tensor(ASFT["labels"])
    targets = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], 1)
    objective = asft_of(case["mode"], case["kl_weight"])
    loss, gradient = of_logits(objective, ASFT["logits"], targets, targets >= 0, ASFT["reference_logits"])
    assert difference(loss, case["loss"]) < 1e-14
    assert difference(gradient, case["gradient_logits"]) < 1e-14


def test_dft():
    ids = torch.tensor(DFT["ids"])
    targets = torch.cat([ids[:, 1:], torch.zeros_like(ids[:, :1])], 1)
    where = torch.tensor(DFT["predicts_next"]) > 0
    loss, gradient = of_logits(parts.build("objective", "dft"), DFT["logits"], targets, where)
    assert difference(loss, DFT["loss"]) < 1e-14
    assert difference(gradient, DFT["gradient_logits"]) < 1e-14
    assert difference(of_logits(parts.build("objective", "sft"), DFT["logits"], targets, where)[0], DFT["nll"]) < 1e-14


@pytest.mark.parametrize("case", IFT["cases"], ids=lambda case: f"{case['propagation']} {case['decay']}")
def test_ift(case):
    objective = parts.build("objective", {"kind": "ift", "decay": case["decay"], "propagation": case["propagation"]})
    logprob = tensor(IFT["logprob"], requires_grad=True)
    owner, position = torch.tensor(IFT["targets"]).nonzero(as_tuple=True)
    losses = -logprob[owner, position]
    weights = objective.relation(losses, owner, position)
    loss = (weights * losses / owner.bincount()[owner]).sum() / len(logprob)
    whole = torch.zeros_like(logprob).index_put((owner, position), weights)
    assert difference(whole, case["weights"]) < 1e-14
    assert difference(loss, case["loss"]) < 1e-14
    assert difference(torch.autograd.grad(loss, logprob)[0], case["gradient_logprob"]) < 1e-14


def test_lfu_distance():
    rest, pushed = tensor(LFU["rest"]), tensor(LFU["pushed"], requires_grad=True)
    where = torch.tensor(LFU["labels_of_own_position"]) >= 0
    objective = parts.build("objective", {"kind": "lfu", "reduction": "mean"})
    by_layer = [objective.distance(one[where], other[where]) for one, other in zip(rest, pushed, strict=True)]
    distance = torch.stack(by_layer).mean(0).mean()
    assert difference(distance, LFU["distance"]) < 1e-14
    assert difference(torch.autograd.grad(distance, pushed)[0], LFU["gradient_pushed"]) < 1e-14
