"""Clipped losses, divergences, the value loss and advantages against verl and Prefix-RFT's code."""

import numpy
import pytest
import torch

from luthier import parts
from luthier.objectives.policy_gradient import _surrogate
from luthier.rollouts.base import build_chain, credit
from parity.golden import GivenView, difference, golden, tensor
from support.scripted import rollout

POLICY, ADVANTAGES, PREFIX = golden("policy"), golden("advantages"), golden("prefix_rft")
OPTIONS = {
    "grpo token": {},
    "dapo": {},
    "grpo sequence": {"norm": "sequence"},
    "dr_grpo, length 5 x 3 answers": {"norm": "constant", "max_length": 5},
    "dual clip 3": {"dual_clip": 3.0},
    "gspo": {"ratio": "sequence", "norm": "sequence"},
    "cispo 1, .3": {"surrogate": "cispo"},
}
"""A case's name → the options of `grpo` besides its clips."""


def masked():
    return torch.tensor(POLICY["mask"]) > 0


@pytest.mark.parametrize("case", POLICY["cases"], ids=lambda case: case["name"])
def test_grpo(case):
    options = OPTIONS[case["name"]] | {name: case[name] for name in ("clip_low", "clip_high")}
    objective = parts.build("objective", {"kind": "grpo", **options})
    logprob, mask = tensor(POLICY["logprob"], requires_grad=True), masked()
    owner = mask.nonzero()[:, 0]
    streams = {
        "weights": torch.ones(len(owner), dtype=torch.float64),
        "advantages": tensor(POLICY["advantages"])[mask],
        "old_logprobs": tensor(POLICY["old_logprob"])[mask],
    }
    view = GivenView(logprob[mask], owner, streams)
    loss = objective.weighted(view).sum() / (len(owner) if objective.unit == "targets" else len(mask))
    tolerance = 1e-7 if options.get("norm") == "sequence" else 1e-14  # verl adds 1e-8 to the counts of answers
    assert difference(loss, case["loss"]) < tolerance
    assert difference(torch.autograd.grad(loss, logprob)[0], case["gradient_logprob"]) < tolerance


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_divergences(name):
    logprob = tensor(POLICY["logprob"], requires_grad=True)
    value = _surrogate.ESTIMATORS[name](logprob, tensor(POLICY["reference_logprob"]))
    assert difference(value, POLICY["kl"][name]["value"]) < 1e-14
    assert difference(torch.autograd.grad(value.sum(), logprob)[0], POLICY["kl"][name]["gradient"]) < 1e-14


def test_value_loss():
    case, mask = POLICY["value"], masked()
    value = tensor(case["value"], requires_grad=True)
    losses = _surrogate.value_loss(value, tensor(case["old"]), tensor(case["returns"]), case["clip"])
    loss = losses[mask].mean()
    assert difference(loss, case["loss_before_coefficient"]) < 1e-14
    assert difference(torch.autograd.grad(loss, value)[0], case["gradient"]) < 1e-14


def test_gae():
    """Rewards of single tokens; verl whitens with n / (n - 1) of a float32 mask: 2e-8 apart."""
    case, lengths = POLICY["gae"], [int(sum(row)) for row in POLICY["mask"]]
    rewards, states = (
        [numpy.array(row[:n]) for row, n in zip(case[name], lengths, strict=True)] for name in ("rewards", "values")
    )
    made = rollout([0.0] * len(lengths), lengths=lengths, columns={"values": states})
    gae = parts.build("advantage", {"kind": "gae", "gamma": case["gamma"], "lam": case["lam"]})
    advantages = parts.build("advantage", "whiten").compute(made, gae.compute(made, rewards))
    for index, n in enumerate(lengths):
        assert difference(advantages[index], case["whitened_advantages"][index][:n]) < 1e-7
        assert difference(made.columns["returns"][index], case["returns"][index][:n]) < 1e-14


@pytest.mark.parametrize(
    "theirs, chain",
    [
        ("group_norm eps 1e-6 (verl compute_grpo_outcome_advantage)", {"kind": "group_norm", "epsilon": 1e-6}),
        ("center (verl, norm_adv_by_std_in_grpo=False)", "center"),
        ("leave_one_out (verl compute_rloo_outcome_advantage)", "leave_one_out"),
    ],
)
@pytest.mark.parametrize("case", ADVANTAGES)
def test_advantages(case, theirs, chain):
    found = [float(value[0]) for value in credit(build_chain([chain]), rollout(*case["rewards"]))]
    if not any(case[theirs]):
        assert found == case[theirs]
    else:
        assert difference(found, case[theirs]) < 1e-14


@pytest.mark.parametrize(
    "theirs, chain",
    [
        ("center (compute_dr_grpo_outcome_advantage)", "center"),
        (
            "split_prefix alone=reward (compute_dr_grpo_prefix_outcome_advantage)",
            {"kind": "split_prefix", "alone": "reward"},
        ),
    ],
)
def test_advantages_of_prefixes(theirs, chain):
    made = rollout(PREFIX["rewards"], lengths=PREFIX["lengths"], forced=PREFIX["forced"])
    for found, wanted in zip(credit(build_chain([chain]), made), PREFIX["advantages"][theirs], strict=True):
        assert difference(found, wanted[: len(found)]) < 1e-14 and not any(wanted[len(found) :])


def test_the_gate_keeps_the_most_uncertain_tokens_of_a_prefix():
    """One answer that is all prefix, and one without any, whose advantage stays."""
    count = len(PREFIX["entropy"])
    made = rollout([1.0, 0.0], lengths=[count, 2], forced=[count, 0], columns={"entropy": [PREFIX["entropy"], [9, 9]]})
    gated, other = credit(build_chain(["center", {"kind": "entropy_gate", "drop": PREFIX["drop"]}]), made)
    assert PREFIX["advantage_before"] == 0.5 and gated.tolist() == PREFIX["advantage_after_gate"]
    assert other.tolist() == [-0.5, -0.5]


def test_the_length_of_a_prefix():
    strategy = parts.build("strategy", "prefix")
    for step, wanted in PREFIX["low"].items():
        assert strategy.low(int(step) / 100) == pytest.approx(wanted, abs=1e-14)
