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
            Trajectory([*one.forced_ids, *self.answer(one)], "stop", one.record, [0.0] * len(one.forced_ids))
            for one in requests
        ]


def judge(reward):
    """Scores each answer by `reward(trajectory)`."""
    return lambda asked: [[Scored(one, reward(one)) for one in answers] for _, answers in asked]


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
        "seen": Counter(),
    }
    return drive(strategy, prompts, sampler, judge(reward), **(settings | more)), sampler


def rollout(*rewards, lengths=None, columns=None, forced=None):
    """A rollout of groups given by their rewards; `lengths`, `forced` and columns run over all trajectories."""
    groups, place = [], 0
    for number, group in enumerate(rewards):
        members = []
        for index, reward in enumerate(group):
            length = lengths[place] if lengths else 2
            given = forced[place] if forced else 0
            request = Request(
                [5, 6], f"r{number}", tuple([9] * given), bool(given), metadata={"row": f"r{number}#0.0.{index}"}
            )
            trajectory = Trajectory([9] * length, "stop", f"r{number}", request=request)
            members.append(Scored(trajectory, reward))
            place += 1
        groups.append(Group(prompt(f"r{number}"), tuple(members)))
    made = Rollout.of(groups)
    for name, arrays in (columns or {}).items():
        made.columns[name] = [numpy.asarray(one, dtype=float) for one in arrays]
    return made


def with_parts(made, parts):
    """The rollout with named rewards, each [B]."""
    return replace(made, parts={name: numpy.asarray(values, dtype=float) for name, values in parts.items()})
