"""A sampler and a judge that do what a test says, and rollouts made of plain numbers."""

from collections import Counter
from dataclasses import replace

import numpy

from luthier.rollouts.base import Group, Prompt, Rollout
from luthier.rollouts.drive import drive
from luthier.types import Record, Request, Sampling, Scored, Trajectory

END = 0


def prompt(name="a", ids=(5, 6), demonstration=None):
    return Prompt(Record(name, "prompt_completion", {"prompt": "p", "completion": "c"}, "test:1"), ids, demonstration)


class Sampler:
    """Continues each request with `answer(request)`; keeps what was asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked: list[list[Request]] = []

    def __call__(self, requests, sampling, progress=None):
        self.asked.append(list(requests))
        return [
            Trajectory(
                [*request.forced_ids, *self.answer(request)], "stop", request.record, [0.0] * len(request.forced_ids)
            )
            for request in requests
        ]


def judge(reward):
    """Scores each answer by `reward(trajectory)`."""
    return lambda asked: [[Scored(answer, reward(answer)) for answer in answers] for _, answers in asked]


def play(strategy, prompts, answer, reward, **more):
    """Drive a strategy; the groups and the sampler that was used."""
    sampler = Sampler(answer)
    settings = {
        "sampling": Sampling(max_new_tokens=8),
        "seed": 1,
        "rollout": 0,
        "decode": lambda ids: " ".join(map(str, ids)),
        "end_ids": {END},
        "state": strategy.start(),
        "occurrences": Counter(),
    }
    return drive(strategy, prompts, sampler, judge(reward), **(settings | more)), sampler


def rollout(*rewards, lengths=None, columns=None, forced=None):
    """A rollout of groups given by their rewards; `lengths`, `forced` and columns run over all trajectories."""
    groups, position = [], 0
    for number, group in enumerate(rewards):
        members = []
        for index, reward in enumerate(group):
            length = lengths[position] if lengths else 2
            prefix = forced[position] if forced else 0
            request = Request(
                [5, 6], f"r{number}", tuple([9] * prefix), bool(prefix), metadata={"row": f"r{number}#0.0.{index}"}
            )
            trajectory = Trajectory([9] * length, "stop", f"r{number}", request=request)
            members.append(Scored(trajectory, reward))
            position += 1
        groups.append(Group(prompt(f"r{number}"), tuple(members)))
    scripted = Rollout.of(groups)
    for name, arrays in (columns or {}).items():
        scripted.columns[name] = [numpy.asarray(array, dtype=float) for array in arrays]
    return scripted


def with_parts(scripted, parts):
    """The rollout with named rewards, each [B]."""
    return replace(scripted, parts={name: numpy.asarray(values, dtype=float) for name, values in parts.items()})
