"""entropy: made-up logits by hand, which positions and answers count, and where a bandit settles."""

import math

import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.conformance.training import trained, trainer
from luthier.engine.score import score
from luthier.engine.trainer import Batching
from luthier.models.policy import TokenPolicy
from luthier.objectives import _divergence
from luthier.objectives.sum import build_objective
from luthier.recipe import load_recipe
from objectives.policy_gradient.test_rows_without_gradient import SOME, WHOLE, rows_with
from support import bandit
from support.oracle import gradient_of

BONUS = 0.3
LINEAR = 1e-6  # transformers' RMSNorm computes in float32


def entropy():
    return parts.build("objective", "entropy")


def added_to(name, coefficient=BONUS):
    members = ((name, 1.0), ("entropy", coefficient))
    return build_objective([{"objective": {"kind": kind}, "coefficient": factor} for kind, factor in members])


def event_of(objective, rows, batching=WHOLE):
    events = []
    change = trained(objective, parts.build("tuner", "full"), batching, rows, observe=events.append)
    return change, events[0]


def test_by_hand():
    """p = (.5, .3, .2): H = .5 ln 2 + .3 ln(10/3) + .2 ln 5; the slope of -H is p (ln p + H)."""
    loss, gradient = gradient_of(entropy(), logits=(math.log(5), math.log(3), math.log(2)))
    assert loss == pytest.approx(-1.0296530140645737, abs=1e-12)
    assert torch.allclose(gradient, torch.tensor([0.1682529, -0.0522959, -0.1159570]).double(), atol=1e-7)


def test_limits():
    loss, gradient = gradient_of(entropy(), logits=(0.7,) * 4)
    assert loss == pytest.approx(-math.log(4)) and float(gradient.abs().max()) < 1e-15
    for logits in ((1e4, 0.0, -1e4), (0.0, -math.inf, -math.inf)):
        loss, gradient = gradient_of(entropy(), logits=logits)
        assert loss == 0 and not torch.any(gradient)
    loss, gradient = gradient_of(entropy(), logits=(0.0, 0.0, -math.inf))
    assert loss == pytest.approx(-math.log(2)) and not torch.any(gradient)


def test_values_and_slopes_are_those_of_torch():
    draw = torch.Generator().manual_seed(0)
    z = (3 * torch.randn(5, 40, generator=draw, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(_divergence.entropy, (z,))
    outer = torch.randn(5, generator=draw, dtype=torch.float64)
    ours, theirs = _divergence.entropy(z), torch.distributions.Categorical(logits=z).entropy()
    assert torch.allclose(ours, theirs, rtol=1e-13)
    slopes = [torch.autograd.grad(one, z, outer)[0] for one in (ours, theirs)]
    assert torch.allclose(*slopes, rtol=1e-12, atol=1e-15)


def test_the_loss_is_of_the_weighted_targets_and_the_meter_of_all():
    """Against the model's whole logits: a target is predicted from the position before it."""
    rows, model = tiny_rows(), tiny_model()
    values, weights = [], []
    for row in rows:
        log_p = torch.log_softmax(model(input_ids=torch.from_numpy(row.ids).long()[None]).logits[0], -1)
        of_row = torch.from_numpy(row.streams["weights"].values).double()[1:]
        values.append(-(log_p.exp() * log_p).sum(-1)[:-1][of_row != 0])
        weights.append(of_row[of_row != 0])
    h, weight = torch.cat(values), torch.cat(weights)
    loss = -(h * weight).sum() / len(h)
    loss.backward()
    wanted = {name: -p.grad for name, p in model.named_parameters() if p.grad is not None}
    events = []
    options = {"rows": rows, "observe": events.append, "disturb": False}
    change = trained(entropy(), parts.build("tuner", "full"), WHOLE, **options)
    assert events[0]["loss"] == pytest.approx(float(loss.detach()), abs=1e-6)
    assert events[0]["entropy"] == pytest.approx(float(h.detach().mean()), abs=1e-6)
    assert apart(wanted, change) < 1e-5


def test_the_temperature_is_the_samplers():
    """The meter is the mean of what a score pass calls entropy."""
    rows, warm = tiny_rows(), TokenPolicy(tiny_model(), 0.5)
    column = score(warm, rows, ["entropy"], 50)["entropy"]
    events = []
    run = trainer(entropy(), parts.build("tuner", "full"), rows, WHOLE, observe=events.append, disturb=False)
    run.policy.temperature = 0.5
    run.train()
    mean = sum(float(entropies.sum()) for entropies in column.values()) / sum(row.targets for row in rows)
    assert events[0]["entropy"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("batching", [WHOLE, Batching(8, 1), Batching(8, 40, "shared")])
def test_answers_without_an_advantage_count_too(batching):
    """The parts of the sum are apart: grpo's gradient over all targets, and that of -H over the same."""
    rows = rows_with(SOME)
    change, event = event_of(added_to("grpo"), rows, batching)
    (policy, grpo), (spread, alone) = event_of(build_objective({"kind": "grpo"}), rows), event_of(entropy(), rows)
    assert apart({name: policy[name] + BONUS * spread[name] for name in policy}, change) < LINEAR
    assert event["loss"] == pytest.approx(grpo["loss"] + BONUS * alone["loss"], abs=1e-9)
    assert event["entropy"] == pytest.approx(alone["entropy"]) and event["nll"] == pytest.approx(alone["nll"])


def test_where_no_answer_has_an_advantage_the_bonus_remains():
    rows = rows_with([0.0] * 4)
    change, event = event_of(added_to("grpo"), rows)
    spread, alone = event_of(entropy(), rows)
    assert apart({name: BONUS * tensor for name, tensor in spread.items()}, change) < LINEAR
    assert event["loss"] == pytest.approx(BONUS * alone["loss"])


def test_a_recipe_adds_it_by_its_coefficient(tmp_path):
    content = {"model": "nano", "data": {"train": "strings"}}
    content["train"] = {"objective": ["grpo", {"objective": "entropy", "coefficient": 0.01}]}
    summed = build_objective(load_recipe(content, base=tmp_path).settings.train.objective)
    assert [(member.kind, factor) for member, factor in summed.members] == [("grpo", 1.0), ("entropy", 0.01)]


@pytest.mark.parametrize("coefficient", [0.25, 1.0])
def test_reward_and_entropy_balance_at_the_softmax_of_rewards(coefficient):
    """E[r] + c H is largest where p is softmax(r / c)."""
    rewards, z = torch.tensor([1.0, 0.0, 0.5, 0.0]).double(), torch.zeros(4).double()
    for _ in range(700):
        p = torch.softmax(z, -1)
        _, falling = gradient_of(entropy(), logits=tuple(z.tolist()))
        z = z + 4 * (p * (rewards - p @ rewards) - coefficient * falling)
    assert torch.allclose(torch.softmax(z, -1), torch.softmax(rewards / coefficient, -1), atol=1e-9)


def test_a_bandit_with_the_bonus_settles_below_certainty():
    """One right token of fifteen, c = 1/4: e^4 / (e^4 + 14) = .796, but for noise; without it above .95."""
    events = []
    played = bandit.play(added_to("grpo", 0.25), bandit.leave_one_out, updates=120, observe=events.append)
    assert played.expected_reward() == pytest.approx(math.exp(4) / (math.exp(4) + 14), abs=0.1)
    p = played.probabilities()
    assert events[-1]["entropy"] == pytest.approx(float(-(p * p.log()).sum(-1).mean()), abs=0.05)
