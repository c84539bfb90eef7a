"""A contextual bandit: ten prompts of one token, five actions of one token, one of them right for each prompt."""

from __future__ import annotations

from typing import Any

import numpy
import torch

from luthier import parts
from luthier.engine.assemble import Parts, tuned_policy
from luthier.engine.budget import Budget
from luthier.engine.score import score, with_column
from luthier.engine.source import Drawn
from luthier.engine.trainer import Batching, Trainer
from luthier.tuners.base import TunerInputs
from luthier.types import Row, Stream

PROMPTS, ACTIONS, GROUP = 10, 5, 8
RIGHT = [(3 * prompt + 1) % ACTIONS for prompt in range(PROMPTS)]


def group_norm(rewards):
    return (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)


def group_centre(rewards):
    return rewards - rewards.mean(1, keepdims=True)


def leave_one_out(rewards):
    return GROUP / (GROUP - 1) * group_centre(rewards)


class Bandit:
    """A source that samples from the policy it trains; each rollout serves `passes` updates."""

    def __init__(self, policy, advantage, updates, passes=1, seed=0):
        self.policy, self.advantage, self.passes = policy, advantage, passes
        self.budget = Budget("updates", updates)
        self.generator = torch.Generator().manual_seed(seed)
        self.rows: list[Row] = []

    def __len__(self):
        return PROMPTS

    def probabilities(self):
        with torch.no_grad():
            ids = torch.arange(ACTIONS, ACTIONS + PROMPTS)[:, None]
            return torch.softmax(self.policy.module(input_ids=ids).logits[:, -1].double(), -1)

    def expected_reward(self):
        return float(self.probabilities()[torch.arange(PROMPTS), RIGHT].mean())

    def draw(self, position, records):
        if position.updates >= self.budget.amount:
            return None
        if position.updates % self.passes == 0:
            self.rows = self.rollout()
        return Drawn(self.rows, PROMPTS)

    def rollout(self):
        actions = torch.multinomial(self.probabilities(), GROUP, replacement=True, generator=self.generator).numpy()
        rewards = (actions == numpy.array(RIGHT)[:, None]).astype(float)
        rows = [
            Row(f"{prompt}/{index}", numpy.array([ACTIONS + prompt, actions[prompt, index]]), weights())
            for prompt in range(PROMPTS)
            for index in range(GROUP)
        ]
        columns = score(self.policy, rows, ["logprobs", *self.policy.companions], 10_000)
        if "values" in columns:
            values = numpy.array([columns["values"][row.id][1] for row in rows]).reshape(rewards.shape)
            rows = with_column(rows, "values", columns["values"])
            rows = with_column(rows, "returns", column(rows, rewards))
            advantages = whiten(rewards - values)
        else:
            advantages = self.advantage(rewards)
        rows = with_column(rows, "old_logprobs", columns["logprobs"])
        return with_column(rows, "advantages", column(rows, advantages))

    def updates_left(self, position, records):
        return None

    def state(self):
        return {}, {}

    def load(self, tensors, meta):
        pass


def whiten(values):
    return (values - values.mean()) / numpy.sqrt(values.var(ddof=1) + 1e-8)


def weights():
    return {"weights": Stream(numpy.array([0.0, 1.0], dtype=numpy.float32), "token")}


def column(rows, numbers):
    return {
        row.id: numpy.array([0.0, number], dtype=numpy.float32)
        for row, number in zip(rows, numbers.reshape(-1), strict=True)
    }


def play(objective: Any, advantage=None, updates=80, passes=1, lr=3e-3, observe=lambda event: None) -> Bandit:
    """Train a one-layer model on the bandit; expected reward before training is about 1 in 15."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=ACTIONS + PROMPTS,
        max_position_embeddings=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: Any = LlamaForCausalLM(config)
        model = made.eval()
    tuner = parts.build("tuner", "full")
    optimizer = parts.build("optimizer", {"kind": "adamw", "lr": lr})
    chosen = Parts(objective, (tuner,), optimizer, parts.build("schedule", "constant"))
    policy = tuned_policy(model, chosen, TunerInputs())
    source = Bandit(policy, advantage, updates, passes)
    Trainer(policy, chosen, source, Batching(80, 10_000), observe=observe).train()
    return source
