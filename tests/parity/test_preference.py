"""dpo, ipo, simpo and kto against the authors' code: values and gradients."""

import pytest
import torch

from luthier import parts
from luthier.objectives.base import SequenceView, Update
from luthier.objectives.preference.base import PairView
from parity.golden import difference, golden, tensor

PAIRS, KTO = golden("preference"), golden("kto")
OBJECTIVES = {
    "dpo beta .1": {"kind": "dpo"},
    "dpo beta .5 label_smoothing .1": {"kind": "dpo", "beta": 0.5, "label_smoothing": 0.1},
    "ipo beta .1 summed": {"kind": "ipo", "log_ratio": "summed"},
    "simpo beta 2 gamma 1": {"kind": "simpo"},
}


def side(name, update):
    logprob = tensor(PAIRS[name], requires_grad=True)
    reference = {"initial": tensor(PAIRS[f"reference_{name}"])}
    return SequenceView(logprob, tensor(PAIRS[f"{name}_tokens"]), {}, reference, update)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_pairs(name):
    update = Update(1, 0)
    view = PairView(side("chosen", update), side("rejected", update))
    loss = parts.build("objective", OBJECTIVES[name]).pair_loss(view)
    gradients = torch.autograd.grad(loss.sum(), (view.chosen.logprob, view.rejected.logprob))
    assert difference(loss, PAIRS[name]["loss"]) < 1e-14
    assert difference(gradients[0], PAIRS[name]["gradient_chosen"]) < 1e-14
    assert difference(gradients[1], PAIRS[name]["gradient_rejected"]) < 1e-14


@pytest.mark.parametrize("case", KTO["cases"], ids=lambda case: str(case["desirable_weight"]))
def test_kto(case):
    """Their baseline is the mean log-ratio of the mismatched answers, held constant and at least 0."""
    weights = {name: case[name] for name in ("desirable_weight", "undesirable_weight")}
    objective = parts.build("objective", {"kind": "kto", "beta": KTO["beta"], **weights})
    ratios = tensor(KTO["mismatched_sum"]) - tensor(KTO["reference_mismatched"])
    assert difference(ratios.mean().clamp_min(0), case["kl"]) < 1e-14
    good, bad = (tensor(KTO[name], requires_grad=True) for name in ("good_sum", "bad_sum"))
    labels = torch.cat([torch.ones(len(good)), torch.zeros(len(bad))])
    reference = tensor([*KTO["reference_good"], *KTO["reference_bad"]])
    update = Update(1, 0)
    update.set_prepared(objective, case["kl"])
    counts = torch.ones(len(labels), dtype=torch.float64)
    view = SequenceView(torch.cat([good, bad]), counts, {"preferred": labels}, {"initial": reference}, update)
    loss = objective.sequence_loss(view).mean()
    gradients = torch.autograd.grad(loss, (good, bad))
    assert difference(loss, case["loss_mean"]) < 1e-14
    assert difference(gradients[0], [row[0] for row in case["gradient_good"]]) < 1e-14
    assert difference(gradients[1], [row[0] for row in case["gradient_bad"]]) < 1e-14
