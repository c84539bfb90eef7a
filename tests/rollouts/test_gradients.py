"""What rollouts train, seen in the gradients of a small model in float64."""

import numpy
import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import VOCABULARY, tiny_model, tiny_rows
from luthier.conformance.training import trainer
from luthier.engine.budget import Budget
from luthier.engine.score import score
from luthier.engine.source import Records
from luthier.engine.trainer import Batching
from luthier.models.policy import TokenPolicy
from luthier.rollouts.base import Rollout, build_chain, credit, rows_of
from luthier.rollouts.drive import drive
from luthier.sampling.native import NativeSampler
from luthier.types import Sampling
from support.scripted import judge, play, prompt

WHOLE = Batching(16, 10_000, "padded")
FULL = parts.build("tuner", "full")
DEMONSTRATION = list(range(20, 30))
CONSTANT = {"kind": "grpo", "norm": "constant", "max_length": 16}


def groups_of(strategy, reward=lambda trajectory: float(sum(trajectory.ids) % 2), **options):
    """Groups of four prompts, sampled by the tiny model; an answer is good where its tokens add up to an odd number."""
    prompts = [prompt(f"r{i}", ids=(5, 6 + i), demonstration=DEMONSTRATION) for i in range(4)]
    part = parts.build("strategy", {"kind": strategy, "group": 4, **options})
    return drive(
        part,
        prompts,
        NativeSampler(tiny_model(), {0}),
        judge(reward),
        sampling=Sampling(max_new_tokens=8, temperature=1.0),
        seed=3,
        rollout=0,
        decode=str,
        end_ids={0},
        state=part.start(),
    )


def gradient(objective, rows):
    """What one step of gradient descent at rate 1 changes, with these streams and no others."""
    run = trainer(parts.build("objective", objective), FULL, rows, WHOLE)
    run.source = Records(rows, 0, Budget("updates", 1))
    before = {name: value.detach().clone() for name, value in run.masters.master.items()}
    run.train()
    return {name: value.detach() - before[name] for name, value in run.masters.master.items()}


def columns_of(rows, names):
    """A score pass of the model that `gradient` starts from."""
    policy = trainer(parts.build("objective", "sft"), FULL, tiny_rows(), WHOLE).policy
    return score(policy, rows, names, 10_000)


def test_without_a_prefix_the_gradient_is_that_of_dr_grpo():
    """Ratio 0: the same samples, hence the same rows and the same gradient."""
    chains = (["center", {"kind": "entropy_gate"}], ["center"])
    gradients = []
    for strategy, options, chain in (("prefix", {"high": 0, "end": 0}, chains[0]), ("plain", {}, chains[1])):
        groups = groups_of(strategy, **options)
        sampled = Rollout.of(groups, {"entropy": columns_of(rows_of(groups), ["entropy"])["entropy"]})
        gradients.append(gradient(CONSTANT, rows_of(groups, credit(build_chain(chain), sampled))))
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert apart(gradients[1], {name: 0 * value for name, value in gradients[1].items()}) > 0.5


def test_a_frozen_prefix_gets_no_gradient_and_the_rest_keeps_its_own():
    """drop 1: as if the prefix had been context, the divisor being the same constant."""
    groups = groups_of("prefix", high=0.5, end=0.5)
    sampled = Rollout.of(groups, {"entropy": columns_of(rows_of(groups), ["entropy"])["entropy"]})
    rows = rows_of(groups, credit(build_chain(["center", {"kind": "entropy_gate", "drop": 1}]), sampled))
    frozen = gradient(CONSTANT, rows)
    free = gradient(CONSTANT, rows_of(groups, credit(build_chain("center"), sampled)))
    for row in rows:
        row.streams["weights"].values[row.streams["forced"].values == 1] = 0
    assert apart(gradient(CONSTANT, rows), frozen) < 1e-12
    assert apart(frozen, free) > 1e-3


def test_with_advantage_one_a_prefix_is_learned_as_sft_learns_it():
    """L = D - 1, hybrid rows only, A = 1: the part that comes from prefix tokens is the gradient of sft."""
    groups = groups_of("prefix", hybrids=4, high=1.0, end=1.0)
    rows = rows_of(groups, [numpy.ones(len(answer.trajectory.ids)) for group in groups for answer in group.members])
    for row in rows:
        assert row.ids[2:11].tolist() == DEMONSTRATION[:9]
        row.streams["weights"].values[row.streams["forced"].values == 0] = 0
    assert apart(gradient("sft", rows), gradient({"kind": "grpo", "norm": "token"}, rows)) < 1e-12


@pytest.mark.parametrize("strategy", ["prefix", "plain"])
def test_the_ratio_is_one_on_every_token_at_the_first_step(strategy):
    """Old log-probabilities of a score pass, demonstration's tokens included, change nothing before a step is made."""
    groups = groups_of(strategy)
    plain = rows_of(groups)
    sampled = Rollout.of(groups, {"old_logprobs": columns_of(plain, ["logprobs"])["logprobs"]})
    values = credit(build_chain("group_norm"), sampled)
    with_old = gradient("grpo", rows_of(groups, values, sampled.columns))
    assert apart(gradient("grpo", rows_of(groups, values)), with_old) < 1e-12


def test_a_hint_is_context_and_gets_no_gradient():
    """Branched rows: the targets are what was sampled, and nothing of the hint."""
    strategy = parts.build("strategy", {"kind": "branch", "cut": "tokens", "group": 4})
    helped = lambda trajectory: float(len(trajectory.request.prompt_ids) > 4 and trajectory.request.seed % 2)  # noqa: E731
    groups, _ = play(strategy, [prompt(ids=(5, 6), demonstration=DEMONSTRATION)], lambda request: [7, 8, 0], helped)
    assert groups and groups[0].context
    for row in rows_of(groups):
        hint = len(groups[0].context)
        assert row.streams["weights"].values.nonzero()[0].tolist() == list(range(2 + hint, 5 + hint))
    assert max(DEMONSTRATION) < VOCABULARY


def test_the_score_pass_agrees_with_the_samplers_log_probabilities():
    """With a hint in the context, and behind a prefix."""
    helped = lambda trajectory: float(len(trajectory.request.prompt_ids) > 4 and trajectory.request.seed % 2)  # noqa: E731
    for groups in (groups_of("branch", helped, cut="tokens"), groups_of("prefix")):
        policy = TokenPolicy(tiny_model())
        sampled = Rollout.of(groups, {"now": score(policy, rows_of(groups), ["logprobs"], 10_000)["logprobs"]})
        assert any(group.context for group in groups) or any(forced.any() for forced in sampled.forced)
        for sampled_logprobs, scored_logprobs, forced in zip(
            sampled.columns["sampler_logprobs"], sampled.columns["now"], sampled.forced, strict=True
        ):
            assert abs(sampled_logprobs - scored_logprobs)[~forced].max() < 1e-5
            assert scored_logprobs[forced].all() and not sampled_logprobs[forced].any()
