"""The driver of rollouts: all prompts in lock-step, one generation and one judgement per round; refill; measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from luthier.errors import RunError
from luthier.rollouts.base import Context, Group, Judge, Prompt, Rounds, Strategy, forced_tokens
from luthier.types import Request, Sampler, Sampling, Scored, Trajectory

MOST_ROUNDS = 100


@dataclass
class _Play:
    """One prompt's strategy in flight."""

    prompt: Prompt
    ctx: Context
    rounds: Rounds
    name: str
    requests: list[Request] = field(default_factory=list)
    groups: list[Group] | None = None

    def go_on(self, scored: list[Scored] | None, number: int) -> None:
        """Take the answers to the last round and say what comes next."""
        try:
            wanted = next(self.rounds) if scored is None else self.rounds.send(scored)
        except StopIteration as end:
            self.groups, self.requests = list(end.value or []), []
            return
        self.requests = [
            replace(
                request,
                seed=self.ctx.seed(number, index),
                group=f"{self.name}.{number}/{request.group}",
                metadata={**request.metadata, "row": f"{self.name}.{number}.{index}"},
            )
            for index, request in enumerate(wanted)
        ]


def drive(
    strategy: Strategy,
    prompts: Sequence[Prompt],
    sample: Sampler,
    judge: Judge,
    *,
    sampling: Sampling,
    seed: int,
    rollout: int,
    decode: Callable[[Sequence[int]], str],
    end_ids: set[int] | frozenset[int],
    progress: float = 0.0,
    state: Any = None,
    seen: Counter[str] | None = None,
) -> list[Group]:
    """Play the strategy on all prompts in lock-step: one generation and one judgement per round.

    Args:
        rollout: number of this rollout; with `seed`, record, round and index it decides every draw.
        state: what `strategy.start()` gave.
        seen: how often each record occurred in this rollout before; counts on.

    Returns:
        The groups of all prompts, in their order. A strategy may return none for a prompt.

    Raises:
        RunError: a strategy that does not end, a sampler or judge that leaves out answers.
    """
    seen = Counter() if seen is None else seen
    plays = []
    for prompt in prompts:
        record = prompt.record.id
        key = (seed, rollout, record, seen[record])
        name = f"{record}#{rollout}" + (f"~{seen[record]}" if seen[record] else "")
        seen[record] += 1
        ctx = Context(key, progress, state, decode, frozenset(end_ids), sampling.max_new_tokens)
        plays.append(_Play(prompt, ctx, strategy.rounds(prompt, ctx), name))
        plays[-1].go_on(None, 0)
    for number in range(1, MOST_ROUNDS + 1):
        active = [play for play in plays if play.groups is None]
        if not active:
            return [group for play in plays for group in play.groups or []]
        for play, scored in zip(active, _round(active, sample, judge, sampling), strict=True):
            play.go_on(scored, number)
    raise RunError(f"The strategy `{strategy.kind}` wants more than {MOST_ROUNDS} rounds for one prompt.")


def _round(active: Sequence[_Play], sample: Sampler, judge: Judge, sampling: Sampling) -> list[list[Scored]]:
    """Sample and judge the requests of all prompts; the answers by prompt, in the order of its requests."""
    requests = [request for play in active for request in play.requests]
    answers = _continued(requests, sample, sampling)
    sets: dict[str, tuple[Prompt, list[int]]] = {}
    owner = [play.prompt for play in active for _ in play.requests]
    for index, request in enumerate(requests):
        sets.setdefault(request.group, (owner[index], []))[1].append(index)
    judged = judge([(prompt, [answers[i] for i in places]) for prompt, places in sets.values()])
    scored: dict[int, Scored] = {}
    for (prompt, places), values in zip(sets.values(), judged, strict=True):
        if len(values) != len(places):
            raise RunError(f"The judge scored {len(values)} of {len(places)} answers to record {prompt.record.id}.")
        scored |= dict(zip(places, values, strict=True))
    place = iter(range(len(requests)))
    return [[scored[next(place)] for _ in play.requests] for play in active]


def _continued(requests: Sequence[Request], sample: Sampler, sampling: Sampling) -> list[Trajectory]:
    found = sample(requests, sampling) if requests else []
    if len(found) != len(requests):
        raise RunError(f"The sampler gave {len(found)} continuations for {len(requests)} requests.")
    for one, request in zip(found, requests, strict=True):
        if one.finish != "error" and list(one.ids[: len(request.forced_ids)]) != list(request.forced_ids):
            raise RunError(f"The sampler did not keep the forced tokens of record {request.record}.")
    return [replace(one, request=request) for one, request in zip(found, requests, strict=True)]


@dataclass(frozen=True)
class Refilled:
    """Groups whose rewards differ, how many prompts that took, and all groups that were made on the way."""

    groups: list[Group]
    prompts: int
    made: list[Group]


def refill(
    draw: Callable[[int], Sequence[Prompt]],
    play: Callable[[Sequence[Prompt]], list[Group]],
    wanted: int,
    tries: int = 10,
) -> Refilled:
    """Dynamic sampling (DAPO, arXiv 2503.14476): draw prompts until `wanted` groups have unequal rewards.

    Args:
        draw: gives up to so many further prompts; fewer or none where the budget ends.
        play: `drive` on prompts, with one `seen` for the whole rollout.
        tries: the most generations; then the groups found so far are what there is, possibly none.
    """
    kept: list[Group] = []
    made: list[Group] = []
    used = 0
    for _ in range(tries):
        prompts = draw(wanted - len(kept))
        if not prompts:
            break
        used += len(prompts)
        groups = play(prompts)
        made += groups
        kept += [group for group in groups if group.informative]
        if len(kept) >= wanted:
            break
    return Refilled(kept[:wanted], used, made)


def measures(groups: Sequence[Group]) -> dict[str, float]:
    """Numbers to report of a rollout: rewards and their parts, lengths, and the groups' own facts."""
    members = [one for group in groups for one in group.members]
    named: dict[str, list[float]] = {
        "reward": [one.reward for one in members if one.reward is not None],
        "length": [float((~forced_tokens(one.trajectory)).sum()) for one in members],
        "truncated": [float(one.trajectory.finish == "length") for one in members],
        "informative_groups": [float(group.informative) for group in groups],
    }
    for one in members:
        for name, value in one.parts.items():
            named.setdefault(f"reward/{name}", []).append(value)
    for group in groups:
        for name, value in group.facts.items():
            named.setdefault(f"rollout/{name}", []).append(float(value))
    return {name: sum(values) / len(values) for name, values in named.items() if values}
