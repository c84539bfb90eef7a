"""grpo: norms on the card's numbers, identities with sft and REINFORCE, and what the ratio may see."""

from dataclasses import replace
from functools import partial

import numpy
import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_model, tiny_rows, with_streams
from luthier.conformance.training import trained, trainer
from luthier.engine.assemble import Parts, tuned_policy
from luthier.engine.score import score, with_column
from luthier.engine.trainer import Batching
from luthier.errors import RecipeError, RunError
from luthier.models import checks
from luthier.models.policy import TokenPolicy
from luthier.objectives.base import TokenObjective
from luthier.objectives.sum import WeightedSum, reads_of
from luthier.tuners.base import TunerInputs
from luthier.types import Row, Stream

WHOLE = Batching(8, 10_000)
LINEAR = 1e-6  # transformers' RMSNorm computes in float32


def grpo(**options):
    return parts.build("objective", {"kind": "grpo", **options})


def full():
    return parts.build("tuner", "full")


def rollout_row(name, length, advantage, prompt=2):
    ids = numpy.arange(prompt + length, dtype=numpy.int32) + len(name)
    weights = numpy.r_[numpy.zeros(prompt), numpy.ones(length)].astype(numpy.float32)
    advantages = numpy.full(prompt + length, advantage, dtype=numpy.float32)
    return Row(name, ids, {"weights": Stream(weights, "token"), "advantages": Stream(advantages, "token")})


def own(rows, **model):
    """The rows with the log-probabilities of the model that is trained: nothing has moved since sampling."""
    column = score(TokenPolicy(tiny_model(**model)), rows, ["logprobs"], 50)["logprobs"]
    return with_column(rows, "old_logprobs", column)


def loss_of(objective, rows, batching=WHOLE):
    events = []
    trained(objective, full(), batching, rows=rows, observe=events.append, disturb=False)
    return events[0]["loss"]


TWO = [rollout_row("short", 2, 1.0), rollout_row("longer", 4, -1.0)]


@pytest.mark.parametrize(
    "options, wanted",
    [({"norm": "sequence"}, 0.0), ({}, 1 / 3), ({"norm": "constant", "max_length": 8}, 0.125)],
)
@pytest.mark.parametrize("batching", [WHOLE, Batching(8, 1), Batching(8, 100, "packed")])
def test_norms(options, wanted, batching):
    assert loss_of(grpo(**options), own(TWO), batching) == pytest.approx(wanted, abs=1e-6)


def with_advantages(value):
    rows = tiny_rows()
    return [
        replace(row, streams={**row.streams, "advantages": Stream(numpy.full(len(row), value, "float32"), "token")})
        for row in rows
    ]


class Reinforce(TokenObjective):
    READS = ("advantages",)

    def token_loss(self, view):
        return -view.stream("advantages") * view.logprob


def test_advantage_one_and_ratio_one_is_sft():
    rows = own(with_advantages(1.0))
    sft = trained(parts.build("objective", "sft"), full(), WHOLE, rows=rows, disturb=False)
    assert apart(sft, trained(grpo(), full(), WHOLE, rows=rows, disturb=False)) < LINEAR


@pytest.mark.parametrize("options", [{}, {"ratio": "sequence"}, {"clip_low": 0.9, "clip_high": 9.0}])
def test_the_first_update_of_a_rollout_is_reinforce(options):
    rows = own(_mixed())
    wanted = trained(Reinforce(), full(), WHOLE, rows=rows, disturb=False)
    assert apart(wanted, trained(grpo(**options), full(), WHOLE, rows=rows, disturb=False)) < LINEAR


def _mixed():
    return [with_advantages(1.0 if index % 3 else -0.5)[index] for index in range(8)]


def test_old_logprobs_may_be_left_out_when_nothing_has_moved(monkeypatch):
    rows = _mixed()
    with_old = trained(grpo(), full(), WHOLE, rows=own(rows), disturb=False)
    monkeypatch.setattr(type(grpo()), "READS", ("advantages",))
    for options in ({}, {"ratio": "sequence"}):
        without = trained(grpo(**options), full(), WHOLE, rows=rows, disturb=False)
        assert apart(with_old, without) < LINEAR


def _unweighted(row):
    weights = Stream((row.streams["weights"].values != 0).astype("float32"), "token")
    return replace(row, streams={**row.streams, "weights": weights})


def test_a_sequence_ratio_is_of_the_whole_record():
    """Against the formula of GSPO over records, differentiated as a whole."""
    rows = [_unweighted(row) for row in own(_mixed(), seed=5)]
    change = trained(grpo(ratio="sequence", norm="sequence"), full(), WHOLE, rows=rows, disturb=False)
    model = tiny_model()
    losses = []
    for row in rows:
        log_p = torch.log_softmax(model(input_ids=torch.from_numpy(row.ids).long()[None]).logits[0].double(), -1)
        at = [t for t in range(1, len(row)) if row.streams["weights"].values[t]]
        logprob = torch.stack([log_p[t - 1, row.ids[t]] for t in at])
        old = torch.from_numpy(row.streams["old_logprobs"].values[at]).double()
        rho, advantage = (logprob - old).mean().exp(), float(row.streams["advantages"].values[0])
        losses.append(-torch.minimum(rho * advantage, rho.clamp(0.8, 1.2) * advantage))
    torch.stack(losses).mean().backward()
    wanted = {name: -p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert wanted.keys() == change.keys()
    assert apart(wanted, change) < 1e-5


def test_without_clipping_a_second_update_has_the_gradient_of_the_ratio():
    rows = own(_mixed(), seed=5)
    wide = grpo(clip_low=1e9, clip_high=1e9)

    class Importance(TokenObjective):
        READS = ("advantages", "old_logprobs")

        def token_loss(self, view):
            return -(view.logprob - view.stream("old_logprobs")).exp() * view.stream("advantages")

    wanted = trained(Importance(), full(), WHOLE, rows=rows)
    assert apart(wanted, trained(wide, full(), WHOLE, rows=rows)) < LINEAR
    assert apart(wanted, trained(grpo(), full(), WHOLE, rows=rows)) > 1e-3


@pytest.mark.parametrize("norm", ["token", "sequence", "constant"])
def test_no_accumulation_changes_the_gradient(norm):
    rows = own(_mixed(), seed=5)
    whole = trained(grpo(norm=norm), full(), WHOLE, rows=rows)
    for tokens in (1, 60):
        assert apart(whole, trained(grpo(norm=norm), full(), Batching(8, tokens), rows=rows)) < 1e-9


def test_the_reference_is_read_only_where_it_counts():
    assert reads_of(grpo()) == ("advantages", "old_logprobs")
    assert reads_of(grpo(kl_coefficient=0.1)) == ("advantages", "old_logprobs", "logprobs:initial")


def test_kl_is_reported_and_shrinks_without_a_reward():
    from luthier.engine.budget import Budget

    rows = with_column(own(with_advantages(0.0)), "logprobs:initial", _initial(with_advantages(0.0)))
    events = []
    adamw = parts.build("optimizer", {"kind": "adamw", "lr": 3e-3})
    objective = grpo(kl_coefficient=1.0)
    budget = Budget("updates", 30)
    trained(objective, full(), WHOLE, rows=rows, observe=events.append, optimizer=adamw, budget=budget)
    assert events[0]["kl"] > 0.05 and events[-1]["kl"] < 0.1 * events[0]["kl"]


def _initial(rows):
    return score(TokenPolicy(tiny_model(seed=3)), rows, ["logprobs"], 50)["logprobs"]


def test_meters_say_how_far_the_policy_moved():
    events = []
    trained(grpo(), full(), WHOLE, rows=own(_mixed(), seed=5), observe=events.append)
    assert 0 < events[0]["clip_fraction"] < 1 and abs(events[0]["ratio"] - 1) > 1e-3
    trained(grpo(), full(), WHOLE, rows=own(_mixed()), observe=events.append, disturb=False)
    assert events[1]["clip_fraction"] == 0 and events[1]["ratio"] == pytest.approx(1)


def test_rows_without_advantages_are_refused_in_words(monkeypatch):
    monkeypatch.setattr(type(grpo()), "READS", ())
    with pytest.raises(RecipeError, match="reads `advantages`"):
        trained(grpo(), full(), WHOLE)


def test_a_sum_with_sft():
    mixed = WeightedSum(members=((grpo(norm="constant"), 2.0), (parts.build("objective", "sft"), 0.5)))
    rows = own(_mixed(), seed=5)
    first, second = (
        trained(o, full(), WHOLE, rows=rows) for o in (grpo(norm="constant"), parts.build("objective", "sft"))
    )
    assert apart({n: 2 * first[n] + 0.5 * second[n] for n in first}, trained(mixed, full(), WHOLE, rows=rows)) < LINEAR


def test_temperature_is_the_samplers():
    """Loss, score pass and sampler speak of one distribution: logits divided by the temperature."""
    rows = with_advantages(1.0)
    plain, warm = (TokenPolicy(tiny_model(), temperature) for temperature in (1.0, 0.5))
    column = score(warm, rows, ["logprobs"], 50)["logprobs"]
    for row in rows:
        with torch.no_grad():
            logits = plain.module(input_ids=torch.from_numpy(row.ids).long()[None]).logits[0] / 0.5
        log_p = torch.log_softmax(logits, -1)
        for t in range(1, len(row)):
            if row.streams["weights"].values[t]:
                assert column[row.id][t] == pytest.approx(float(log_p[t - 1, row.ids[t]]), abs=1e-6)
    checks.verify_head(warm)
    events = []
    run = trainer(
        grpo(), full(), with_column(rows, "old_logprobs", column), WHOLE, observe=events.append, disturb=False
    )
    run.policy.temperature = 0.5
    run.train()
    assert events[0]["ratio"] == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(RecipeError, match="temperature 0"):
        TokenPolicy(tiny_model(), 0.0)


def test_references_share_the_temperature():
    asft = parts.build("objective", "asft")
    for tuner in (full(), parts.build("tuner", "lora")):
        cooler = partial(TokenPolicy, temperature=0.5)
        policy = tuned_policy(tiny_model(), Parts(asft, (tuner,), None, None), TunerInputs(), cooler)
        hidden = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(policy.references["initial"].logits(hidden), policy.head.logits(hidden))


def test_the_bound_of_k3_is_for_k3_in_the_loss():
    for options in ({"kl_coefficient": 0.1, "kl_estimator": "k2"}, {}):
        with pytest.raises(RecipeError, match="k3_clamp"):
            grpo(k3_clamp=10.0, **options)
    rows = with_streams(tiny_rows(), ["advantages", "old_logprobs", "logprobs:initial"])
    for row in rows:
        row.streams["logprobs:initial"].values[:] += 200.0
    with pytest.raises(RunError, match="not a finite number"):
        loss_of(grpo(kl_coefficient=1.0), rows)
    bare, held = loss_of(grpo(), rows), loss_of(grpo(kl_coefficient=1.0, k3_clamp=10.0), rows)
    weights = [float(row.streams["weights"].values.sum()) for row in rows]
    targets = sum(int((row.streams["weights"].values != 0).sum()) for row in rows)
    assert held == pytest.approx(bare + 10.0 * sum(weights) / targets)
