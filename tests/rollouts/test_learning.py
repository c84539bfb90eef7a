"""Rollouts and advantages teach small tables of logits what they should, and nothing where they should not."""

import numpy
import pytest

from luthier.parts import build
from luthier.rollouts.base import Group, Rollout, build_chain, credit
from luthier.types import Request, Scored, Trajectory
from support.scripted import play, prompt


def softmax(logits):
    p = numpy.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def bandit(chain, shuffled=False, seed=0, updates=60):
    """Ten prompts, five answers of one token each, one of them right; the mean chance of the right ones at the end."""
    draw = numpy.random.default_rng(seed)
    right = draw.integers(0, 5, 10)
    logits, values = numpy.zeros((10, 5)), numpy.zeros(10)
    prompts = [prompt(f"p{i}", ids=(i,)) for i in range(10)]
    links = build_chain(chain)
    for number in range(updates):
        p = softmax(logits)
        rewards = iter(draw.permutation(80) < 20) if shuffled else None

        def answer(request, p=p):
            return [int(numpy.random.default_rng(request.seed).choice(5, p=p[request.prompt_ids[0]]))]

        def reward(trajectory, rewards=rewards):
            return float(next(rewards) if rewards else trajectory.ids[0] == right[trajectory.request.prompt_ids[0]])

        groups, _ = play(build("strategy", "plain"), prompts, answer, reward, rollout=number, seed=seed)
        sampled = Rollout.of(groups)
        asked = [member.trajectory.request.prompt_ids[0] for member in sampled.members]
        sampled.columns["values"] = [values[[question]] for question in asked]
        sampled.columns["old_logprobs"] = [
            numpy.log(p[[k], member.trajectory.ids]) for k, member in zip(asked, sampled.members, strict=True)
        ]
        sampled.columns["logprobs:initial"] = [numpy.log([0.2]) for _ in asked]
        gradient = numpy.zeros_like(logits)
        for k, member, advantage in zip(asked, sampled.members, credit(links, sampled), strict=True):
            gradient[k] += advantage[0] * ((numpy.arange(5) == member.trajectory.ids[0]) - p[k]) / 8
        for k, returns in zip(asked, sampled.columns.get("returns", []), strict=False):
            values[k] += 0.1 * (returns[0] - values[k])
        logits += gradient
    return float(softmax(logits)[numpy.arange(10), right].mean())


CHAINS = {
    "grpo": "group_norm",
    "dr_grpo": "center",
    "batch": "batch_norm",
    "rloo": [{"kind": "kl_penalty", "beta": 0.01}, "leave_one_out"],
    "reinforce++": [{"kind": "kl_penalty", "beta": 0.01}, "returns", "whiten"],
    "reinforce++ with baseline": ["center", "whiten"],
    "ppo": ["gae", "whiten"],
}


@pytest.mark.parametrize("name", CHAINS)
def test_every_estimator_learns_a_bandit(name):
    assert bandit(CHAINS[name]) > 0.95


def test_shuffled_rewards_teach_nothing():
    assert bandit("group_norm", shuffled=True) < 0.4


def pull(chain, columns, steps=3000):
    """KL(policy || reference) after policy-gradient steps without any reward, from logits (2, 0, -2)."""
    logits, reference = numpy.array([2.0, 0.0, -2.0]), numpy.log([0.4, 0.4, 0.2])
    links, draw = build_chain(chain), numpy.random.default_rng(0)
    group = Group(
        prompt(),
        tuple(
            Scored(Trajectory([0], "stop", "a", request=Request([5], "a", metadata={"row": str(i)})), 0.0)
            for i in range(64)
        ),
    )
    sampled = Rollout.of([group])
    for _ in range(steps):
        p = softmax(logits)
        ids = draw.choice(3, 64, p=p)
        if columns:
            sampled.columns["old_logprobs"] = [numpy.log(p[[i]]) for i in ids]
            sampled.columns["logprobs:initial"] = [reference[[i]] for i in ids]
        advantages = numpy.concatenate(credit(links, sampled))
        logits = logits + 0.05 * (advantages[:, None] * (numpy.eye(3)[ids] - p)).mean(0)
    p = softmax(logits)
    return float((p * (numpy.log(p) - reference)).sum())


@pytest.mark.slow
def test_the_penalty_in_the_reward_pulls_to_the_reference():
    """The card: from .48624 to below 1e-12; without it nothing moves."""
    assert pull([{"kind": "kl_penalty", "beta": 1.0}, "center"], True) < 1e-12
    assert pull(["center"], False, steps=10) == pytest.approx(0.48624, abs=1e-5)


def chain_of_decisions(strategy, chain, updates=200, steps=20):
    """Twenty binary decisions that must all match, a table of logits, Dr.GRPO; the chance of success at the end."""
    logits = numpy.zeros((steps, 2))
    expert = numpy.random.default_rng(1000).integers(0, 2, steps)
    solution = [10 + int(bit) for bit in expert]
    prompts, links = [prompt(ids=(5,), demonstration=solution)], build_chain(chain)
    for number in range(updates):
        p = softmax(logits)

        def answer(request, p=p):
            start = len(request.forced_ids)
            draws = numpy.random.default_rng(request.seed).random(steps)[start:]
            return [10 + int(bit) for bit in draws < p[start:, 1]]

        more = {"rollout": number, "progress": number / updates}
        groups, _ = play(strategy, prompts, answer, lambda trajectory: float(list(trajectory.ids) == solution), **more)
        sampled = Rollout.of(groups)
        sampled.columns["entropy"] = [-(p * numpy.log(p)).sum(1) for _ in sampled.members]
        for member, advantage in zip(sampled.members, credit(links, sampled), strict=True):
            taken = numpy.array(member.trajectory.ids) - 10
            logits = logits + 60.0 / 160 * advantage[:, None] * (numpy.eye(2)[taken] - p)
    return float(numpy.prod(softmax(logits)[numpy.arange(steps), expert]))


def test_learned_prefixes_solve_a_chain_that_plain_rollouts_and_frozen_prefixes_do_not():
    """The paper's ablation in small: without gradient on prefixes it is hardly better than plain rollouts."""
    prefix = build("strategy", "prefix")
    assert chain_of_decisions(build("strategy", "plain"), "center") == 2.0**-20
    assert chain_of_decisions(prefix, "center") > 0.9
    assert chain_of_decisions(prefix, ["center", "entropy_gate"]) > 0.9
    assert chain_of_decisions(prefix, ["center", {"kind": "entropy_gate", "drop": 1}]) < 0.01
