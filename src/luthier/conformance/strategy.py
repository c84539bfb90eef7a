"""The conformance matrix of strategies: made-up prompts of unequal difficulty, answered and judged by keyed numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luthier.conformance.base import Failed, check_options, variants
from luthier.errors import DataError
from luthier.keyed import uniform53
from luthier.rollouts.base import Group, Prompt, Strategy
from luthier.rollouts.drive import drive
from luthier.types import Record, Request, Sampling, Scored, Trajectory

END, SENTENCE = 0, 99
"""Tokens that end a turn and a sentence."""
PROGRESS = (0.1, 0.5, 0.9)
"""Where in the budget the rollouts of a play stand."""
HELP = (0.0, 0.3, 0.6, 0.9, 1.1, 2.0)
"""The share of a demonstration that a prompt needs before its answers become right; above 1 nothing helps."""


def made_up(demonstrations: bool = True) -> list[Prompt]:
    """Twelve prompts, two of each difficulty; the last but one has a demonstration of one token, the last none."""
    prompts = []
    for number in range(2 * len(HELP)):
        record = Record(f"record-{number}", "prompt_completion", {"prompt": "p", "completion": "c"}, "made up")
        solution = [SENTENCE if place % 4 == 3 else 10 + place for place in range(18 + number)]
        short = {2 * len(HELP) - 2: solution[:1], 2 * len(HELP) - 1: None}
        prompts.append(Prompt(record, (5, 6 + number), short.get(number, solution) if demonstrations else None))
    return prompts


@dataclass
class Play:
    """Rollouts of one strategy: what was asked for by row id, and the groups that came of it, by rollout."""

    strategy: Strategy
    memory: Any = None
    asked: dict[str, Request] = field(default_factory=dict)
    groups: list[list[Group]] = field(default_factory=list)

    def roll(self, prompts: Sequence[Prompt], number: int, seed: int = 0) -> None:
        """One rollout more."""
        found = drive(
            self.strategy,
            prompts,
            self.sample,
            self.judge,
            sampling=Sampling(max_new_tokens=8),
            seed=seed,
            rollout=number,
            decode=lambda ids: "".join(".\n" if one == SENTENCE else "x" for one in ids),
            end_ids={END},
            progress=PROGRESS[number],
            state=self.memory,
        )
        self.groups.append(found)

    def sample(self, requests: Sequence[Request], sampling: Sampling, progress: Any = None) -> list[Trajectory]:
        """Each request goes on with tokens that its seed decides; one in forty breaks off in an error."""
        found = []
        for request in requests:
            self.asked[request.metadata["row"]] = request
            length = 1 + request.seed % 5
            ids = [*request.forced_ids, *(50 + (request.seed >> place) % 7 for place in range(length)), END]
            broken = uniform53(request.seed, "error") < 1 / 40
            found.append(Trajectory(ids, "error" if broken else "stop", request.record, request=request))
        return found

    def judge(self, asked: Sequence[tuple[Prompt, Sequence[Trajectory]]]) -> list[list[Scored]]:
        return [[Scored(one, _reward(prompt, one)) for one in answers] for prompt, answers in asked]


def _reward(prompt: Prompt, one: Trajectory) -> float | None:
    """0, 0.7 or 1: the likelier the more of the demonstration was shown; None where the answer broke off."""
    assert one.request is not None
    if one.finish == "error":
        return None
    shown = len(one.request.prompt_ids) - len(prompt.ids) + len(one.request.forced_ids)
    needed = HELP[int(prompt.record.id.split("-")[1]) // 2] * (len(prompt.demonstration or ()) or 1)
    chance = 0.0 if shown < needed else 0.3 + 0.6 * (shown - needed) / (len(prompt.demonstration or ()) or 1)
    draw = uniform53(one.request.seed, "reward")
    return 0.0 if draw >= chance else 0.7 if draw >= chance / 2 else 1.0


def played(strategy: Strategy, seed: int = 0) -> Play:
    """Three rollouts of all made-up prompts."""
    play = Play(strategy, strategy.start())
    for number in range(len(PROGRESS)):
        play.roll(made_up(), number, seed)
    return play


def told(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """What came of each prompt: its groups as rows, rewards, context and facts."""
    found: dict[str, list[Any]] = {}
    for group in groups:
        rows = [one.trajectory.request.metadata["row"] for one in group.members if one.trajectory.request]
        said = [rows, group.rewards, list(group.context), sorted(group.facts.items())]
        found.setdefault(group.prompt.record.id, []).append(said)
    return found


def check_requests(strategies: Sequence[Strategy]) -> None:
    """What is asked for begins with the prompt; groups hold answers to their prompt that saw the same, each once."""
    for strategy in strategies:
        play = played(strategy)
        prompts = {prompt.record.id: prompt for prompt in made_up()}
        for row, request in play.asked.items():
            prompt = prompts[row.split("#")[0]]
            if request.record != prompt.record.id or list(request.prompt_ids[: len(prompt.ids)]) != list(prompt.ids):
                raise Failed(f"{strategy!r}: a request of {prompt.record.id} does not begin with its prompt")
        for groups in play.groups:
            used = [id(one.trajectory) for group in groups for one in group.members]
            if len(used) > len(set(used)):
                raise Failed(f"{strategy!r}: an answer stands in two groups")
            for group in groups:
                _check_group(strategy, group)


def _check_group(strategy: Strategy, group: Group) -> None:
    name = group.prompt.record.id
    if not group.members:
        raise Failed(f"{strategy!r}: a group of {name} is empty: leave it out")
    asked = [*group.prompt.ids, *group.context]
    for one in group.members:
        request = one.trajectory.request
        if request is None or request.record != name:
            raise Failed(f"{strategy!r}: a group of {name} holds an answer to another prompt")
        if list(request.prompt_ids) != asked:
            raise Failed(f"{strategy!r}: a member of a group of {name} saw another context than `context` says")
    if not all(math.isfinite(value) for value in group.facts.values()):
        raise Failed(f"{strategy!r}: a fact of a group of {name} is not a finite number")


def check_determinism(strategy: Strategy) -> None:
    """The same seed asks for the same; a strategy that draws does so by its key."""
    one, other = played(strategy), played(strategy)
    if one.asked != other.asked or list(map(told, one.groups)) != list(map(told, other.groups)):
        raise Failed("two plays with one seed differ: is there a random call other than by `ctx.seed`?")


def check_order(strategy: Strategy) -> None:
    """Prompts in another order, and one by one, are asked the same and end in the same groups."""
    whole, backwards, alone = played(strategy), *(Play(strategy, strategy.start()) for _ in range(2))
    for number in range(len(PROGRESS)):
        backwards.roll(made_up()[::-1], number)
        alone.groups.append([])
        for prompt in made_up():
            alone.roll([prompt], number)
            alone.groups[number] += alone.groups.pop()
    for name, other in (("in another order", backwards), ("one by one", alone)):
        if other.asked != whole.asked or list(map(told, other.groups)) != list(map(told, whole.groups)):
            raise Failed(f"with the prompts {name} something else is asked: does memory reach from prompt to prompt?")


def check_memory(strategy: Strategy) -> None:
    """What is remembered goes through a checkpoint; the next rollout is the same as without a stop."""
    whole = played(strategy)
    stopped = Play(strategy, strategy.start())
    for number in range(len(PROGRESS) - 1):
        stopped.roll(made_up(), number)
    made = type(strategy)(**{name: getattr(strategy, name) for name in type(strategy).model_fields})
    resumed = Play(made, made.start())
    if (resumed.memory is None) != (stopped.memory is None):
        raise Failed("`start()` gives a memory only sometimes")
    if stopped.memory is not None:
        resumed.memory.load_state_dict(json.loads(json.dumps(stopped.memory.state_dict())))
    resumed.roll(made_up(), len(PROGRESS) - 1)
    if told(resumed.groups[0]) != told(whole.groups[-1]):
        raise Failed("after a resume the next rollout differs: is there memory outside `start()`?")


def check_without_demonstrations(strategy: Strategy) -> None:
    """Prompts without any demonstration are played, or refused in words where the part says that it NEEDS them."""
    prompts = made_up(demonstrations=False)
    try:
        strategy.check(prompts)
    except DataError:
        if "demonstrations" in strategy.NEEDS:
            return
        raise Failed("prompts without demonstrations are refused, and NEEDS does not say so") from None
    if "demonstrations" in strategy.NEEDS:
        raise Failed("NEEDS says `demonstrations`, and `check` lets prompts without them pass")
    Play(strategy, strategy.start()).roll(prompts, 0)


def numbers_of(strategy: Strategy) -> dict[str, Tensor]:
    """All that was asked and all that came of it, as numbers by what they are about."""
    play = played(strategy)
    found = {}
    for row, request in play.asked.items():
        ids = [*request.prompt_ids, -1, *request.forced_ids, request.train_forced]
        found[row] = torch.tensor(ids, dtype=torch.float64)
    for number, groups in enumerate(play.groups):
        for name, said in told(groups).items():
            found[f"{name}/{number}"] = torch.tensor([uniform53(json.dumps(said))], dtype=torch.float64)
    return found


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a strategy, in the order they are run."""
    made = variants(part)
    yield "requests and groups are well formed", lambda: check_requests(made)
    yield "deterministic by seed", lambda: check_determinism(made[0])
    yield "independent of the order and number of prompts", lambda: check_order(made[0])
    yield "memory goes through a checkpoint", lambda: check_memory(made[0])
    yield "every option changes something", lambda: check_options(made, numbers_of)
    yield "without demonstrations: played or refused", lambda: check_without_demonstrations(made[0])
