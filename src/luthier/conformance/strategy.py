"""The checks of strategies: invented prompts of unequal difficulty, answered and judged by keyed numbers."""

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
from luthier.rollouts.base import Group, Prompt, Strategy, row_id
from luthier.rollouts.drive import drive
from luthier.types import Record, Request, Sampling, Scored, Trajectory

END, SENTENCE = 0, 99
"""Tokens that end a turn and a sentence."""
PROGRESS = (0.1, 0.5, 0.9)
"""Share of the budget that is spent before each rollout."""
HELP = (0.0, 0.3, 0.6, 0.9, 1.1, 2.0)
"""The share of a demonstration that a prompt needs before its answers become right; above 1 nothing helps."""


def tiny_prompts(demonstrations: bool = True) -> list[Prompt]:
    """Twelve prompts, two of each difficulty; the last but one has a demonstration of one token, the last none."""
    count = 2 * len(HELP)
    prompts = []
    for number in range(count):
        record = Record(f"record-{number}", "prompt_completion", {"prompt": "p", "completion": "c"}, "invented")
        demonstration = [SENTENCE if position % 4 == 3 else 10 + position for position in range(18 + number)]
        if number == count - 2:
            demonstration = demonstration[:1]
        without = number == count - 1 or not demonstrations
        prompts.append(Prompt(record, (5, 6 + number), None if without else demonstration))
    return prompts


@dataclass
class TinyRollouts:
    """Rollouts of one strategy: its requests by row id, and the groups of each rollout."""

    strategy: Strategy
    memory: Any = None
    requests: dict[str, Request] = field(default_factory=dict)
    groups: list[list[Group]] = field(default_factory=list)

    def roll(self, prompts: Sequence[Prompt], number: int, seed: int = 0) -> None:
        """Add the rollout of this number."""
        groups = drive(
            self.strategy,
            prompts,
            self.sample,
            self.judge,
            sampling=Sampling(max_new_tokens=8),
            seed=seed,
            rollout=number,
            decode=lambda ids: "".join(".\n" if token == SENTENCE else "x" for token in ids),
            end_ids={END},
            progress=PROGRESS[number],
            state=self.memory,
        )
        self.groups.append(groups)

    def sample(self, requests: Sequence[Request], sampling: Sampling, progress: Any = None) -> list[Trajectory]:
        """Each request goes on with tokens that depend on its seed; one in forty breaks off in an error."""
        trajectories = []
        for request in requests:
            self.requests[request.metadata["row"]] = request
            length = 1 + request.seed % 5
            sampled = [50 + (request.seed >> position) % 7 for position in range(length)]
            broken = uniform53(request.seed, "error") < 1 / 40
            finish = "error" if broken else "stop"
            ids = [*request.forced_ids, *sampled, END]
            trajectories.append(Trajectory(ids, finish, request.record, request=request))
        return trajectories

    def judge(self, asked: Sequence[tuple[Prompt, Sequence[Trajectory]]]) -> list[list[Scored]]:
        scored = []
        for prompt, answers in asked:
            scored.append([Scored(answer, _reward(prompt, answer)) for answer in answers])
        return scored


def _reward(prompt: Prompt, answer: Trajectory) -> float | None:
    """0, 0.7 or 1: the more of the demonstration the request shows, the likelier a high one; None after an error."""
    assert answer.request is not None
    if answer.finish == "error":
        return None
    length = len(prompt.demonstration or ()) or 1
    tokens_shown = len(answer.request.prompt_ids) - len(prompt.ids) + len(answer.request.forced_ids)
    needed = HELP[int(prompt.record.id.split("-")[1]) // 2] * length
    chance = 0.0 if tokens_shown < needed else 0.3 + 0.6 * (tokens_shown - needed) / length
    draw = uniform53(answer.request.seed, "reward")
    return 0.0 if draw >= chance else 0.7 if draw >= chance / 2 else 1.0


def rollouts_of(strategy: Strategy, seed: int = 0) -> TinyRollouts:
    """Three rollouts of all invented prompts."""
    rollouts = TinyRollouts(strategy, strategy.start())
    for number in range(len(PROGRESS)):
        rollouts.roll(tiny_prompts(), number, seed)
    return rollouts


def by_record(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Record id → its groups, each as row ids, rewards, context and facts, to be compared."""
    described: dict[str, list[Any]] = {}
    for group in groups:
        rows = [row_id(member.trajectory) for member in group.members]
        comparable = [rows, group.rewards, list(group.context), sorted(group.facts.items())]
        described.setdefault(group.prompt.record.id, []).append(comparable)
    return described


def check_requests(strategies: Sequence[Strategy]) -> None:
    """A request begins with its prompt; a group holds answers to one prompt and context; no answer is in two groups."""
    for strategy in strategies:
        rollouts = rollouts_of(strategy)
        prompts = {prompt.record.id: prompt for prompt in tiny_prompts()}
        for row, request in rollouts.requests.items():
            prompt = prompts[row.split("#")[0]]
            if request.record != prompt.record.id or list(request.prompt_ids[: len(prompt.ids)]) != list(prompt.ids):
                raise Failed(f"{strategy!r}: a request of {prompt.record.id} does not begin with its prompt")
        for groups in rollouts.groups:
            used = [id(member.trajectory) for group in groups for member in group.members]
            if len(used) > len(set(used)):
                raise Failed(f"{strategy!r}: an answer is in two groups")
            for group in groups:
                _check_group(strategy, group)


def _check_group(strategy: Strategy, group: Group) -> None:
    name = group.prompt.record.id
    if not group.members:
        raise Failed(f"{strategy!r}: a group of {name} is empty: return only groups with members")
    question = [*group.prompt.ids, *group.context]
    for member in group.members:
        request = member.trajectory.request
        if request is None or request.record != name:
            raise Failed(f"{strategy!r}: a group of {name} holds an answer to another prompt")
        if list(request.prompt_ids) != question:
            raise Failed(f"{strategy!r}: a member of a group of {name} saw a context other than `context`")
    if not all(math.isfinite(value) for value in group.facts.values()):
        raise Failed(f"{strategy!r}: a fact of a group of {name} is not a finite number")


def check_determinism(strategy: Strategy) -> None:
    """The same seed gives the same requests and groups."""
    first, second = rollouts_of(strategy), rollouts_of(strategy)
    if _differ(first, second):
        raise Failed("two rollouts with one seed differ: is there a random call other than by `ctx.seed`?")


def _differ(first: TinyRollouts, second: TinyRollouts) -> bool:
    groups = [list(map(by_record, rollouts.groups)) for rollouts in (first, second)]
    return first.requests != second.requests or groups[0] != groups[1]


def check_order(strategy: Strategy) -> None:
    """Prompts in another order, and one by one, give the same requests and groups."""
    together = rollouts_of(strategy)
    backwards, alone = TinyRollouts(strategy, strategy.start()), TinyRollouts(strategy, strategy.start())
    for number in range(len(PROGRESS)):
        backwards.roll(tiny_prompts()[::-1], number)
        alone.groups.append([])
        for prompt in tiny_prompts():
            alone.roll([prompt], number)
            alone.groups[number] += alone.groups.pop()
    for how, other in (("in another order", backwards), ("one by one", alone)):
        if _differ(together, other):
            raise Failed(f"with the prompts {how} the requests differ: does memory reach from prompt to prompt?")


def check_memory(strategy: Strategy) -> None:
    """Memory goes through a checkpoint: the next rollout is the same as without a stop."""
    unstopped = rollouts_of(strategy)
    stopped = TinyRollouts(strategy, strategy.start())
    for number in range(len(PROGRESS) - 1):
        stopped.roll(tiny_prompts(), number)
    # A new object, since state in the part itself would survive in the old one.
    again = type(strategy)(**{name: getattr(strategy, name) for name in type(strategy).model_fields})
    resumed = TinyRollouts(again, again.start())
    if (resumed.memory is None) != (stopped.memory is None):
        raise Failed("`start()` gives a memory only sometimes")
    if stopped.memory is not None:
        resumed.memory.load_state_dict(json.loads(json.dumps(stopped.memory.state_dict())))
    resumed.roll(tiny_prompts(), len(PROGRESS) - 1)
    if by_record(resumed.groups[0]) != by_record(unstopped.groups[-1]):
        raise Failed("after a resume the next rollout differs: is there memory outside `start()`?")


def check_without_demonstrations(strategy: Strategy) -> None:
    """Prompts without demonstrations are sampled, or refused by DataError if the part NEEDS demonstrations."""
    prompts = tiny_prompts(demonstrations=False)
    try:
        strategy.check(prompts)
    except DataError:
        if "demonstrations" in strategy.NEEDS:
            return
        raise Failed("prompts without demonstrations are refused, and NEEDS does not name `demonstrations`") from None
    if "demonstrations" in strategy.NEEDS:
        raise Failed("NEEDS says `demonstrations`, and `check` does not refuse prompts without them")
    TinyRollouts(strategy, strategy.start()).roll(prompts, 0)


def numbers_of(strategy: Strategy) -> dict[str, Tensor]:
    """All requests and all groups as numbers, by row and by record."""
    rollouts = rollouts_of(strategy)
    numbers = {}
    for row, request in rollouts.requests.items():
        ids = [*request.prompt_ids, -1, *request.forced_ids, request.train_forced]
        numbers[row] = torch.tensor(ids, dtype=torch.float64)
    for number, groups in enumerate(rollouts.groups):
        for record, described in by_record(groups).items():
            hashed = uniform53(json.dumps(described))
            numbers[f"{record}/{number}"] = torch.tensor([hashed], dtype=torch.float64)
    return numbers


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a strategy, in the order they are run."""
    strategies = variants(part)
    yield "requests and groups are well formed", lambda: check_requests(strategies)
    yield "deterministic by seed", lambda: check_determinism(strategies[0])
    yield "independent of the order and number of prompts", lambda: check_order(strategies[0])
    yield "memory goes through a checkpoint", lambda: check_memory(strategies[0])
    yield "every option changes something", lambda: check_options(strategies, numbers_of)
    yield "without demonstrations: sampled or refused", lambda: check_without_demonstrations(strategies[0])
