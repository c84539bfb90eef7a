"""The driver of rollouts: all prompts in lock-step, one generation and one judging per round; refill; measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from luthier.errors import RunError
from luthier.rollouts.base import Context, Group, Judge, Prompt, Rounds, Strategy, forced_tokens
from luthier.types import Request, Sampler, Sampling, Scored, Trajectory

MOST_ROUNDS = 100  # a strategy that asks for more is taken for one that does not end


@dataclass
class _PromptRun:
    """The strategy's generator for one prompt, with the requests of its current round; `groups` once it has ended."""

    prompt: Prompt
    ctx: Context
    rounds: Rounds
    name: str
    requests: list[Request] = field(default_factory=list)
    groups: list[Group] | None = None

    def advance(self, scored: list[Scored] | None, round: int) -> None:
        """Send the answers of the last round (None: start), and set the requests of this round."""
        try:
            requests = next(self.rounds) if scored is None else self.rounds.send(scored)
        except StopIteration as end:
            self.groups, self.requests = list(end.value or []), []
            return
        self.requests = []
        for index, request in enumerate(requests):
            # The prefix keeps apart the groups of different prompts and rounds that a strategy names alike.
            numbered = replace(
                request,
                seed=self.ctx.seed(round, index),
                group=f"{self.name}.{round}/{request.group}",
                metadata={**request.metadata, "row": f"{self.name}.{round}.{index}"},
            )
            self.requests.append(numbered)


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
    occurrences: Counter[str] | None = None,
) -> list[Group]:
    """Run the strategy on all prompts in lock-step: one generation and one judging per round.

    Args:
        strategy, prompts: what to sample, and for which prompts.
        sample, judge: write and score the answers.
        sampling: how tokens are drawn.
        seed, rollout: with record, round and index, these decide every draw; `rollout` numbers the rollouts.
        decode, end_ids, progress: for `Context`.
        state: the return of `strategy.start()`.
        occurrences: how often each record was drawn in this rollout before; counted up here.

    Returns:
        The groups of all prompts, in their order. A strategy may return no group for a prompt.

    Raises:
        RunError: a strategy does not end; the sampler or judge leaves out answers, or the sampler forced tokens.
    """
    # A rollout of more prompts than the data has draws a record twice; the second time it gets other draws and ids.
    occurrences = Counter() if occurrences is None else occurrences
    runs: list[_PromptRun] = []
    for prompt in prompts:
        record = prompt.record.id
        occurrence = occurrences[record]
        occurrences[record] += 1
        key = (seed, rollout, record, occurrence)
        name = f"{record}#{rollout}" + (f"~{occurrence}" if occurrence else "")
        ctx = Context(key, progress, state, decode, frozenset(end_ids), sampling.max_new_tokens)
        runs.append(_PromptRun(prompt, ctx, strategy.rounds(prompt, ctx), name))
        runs[-1].advance(None, 0)
    for round in range(1, MOST_ROUNDS + 1):
        active = [run for run in runs if run.groups is None]
        if not active:
            return [group for run in runs for group in run.groups or []]
        for run, scored in zip(active, _round(active, sample, judge, sampling), strict=True):
            run.advance(scored, round)
    raise RunError(f"The strategy `{strategy.kind}` wants more than {MOST_ROUNDS} rounds for one prompt.")


def _round(active: Sequence[_PromptRun], sample: Sampler, judge: Judge, sampling: Sampling) -> list[list[Scored]]:
    """Sample and judge the requests of all prompts; for each prompt its answers, in the order of its requests."""
    requests = [request for run in active for request in run.requests]
    # One call for all prompts: a sampler is fastest with many rows.
    trajectories = _sample(requests, sample, sampling)
    groups: dict[str, tuple[Prompt, list[int]]] = {}
    prompt_of = [run.prompt for run in active for _ in run.requests]
    for index, request in enumerate(requests):
        groups.setdefault(request.group, (prompt_of[index], []))[1].append(index)
    asked: list[tuple[Prompt, list[Trajectory]]] = []
    for prompt, indices in groups.values():
        asked.append((prompt, [trajectories[index] for index in indices]))
    judged = judge(asked)
    scored: dict[int, Scored] = {}
    for (prompt, indices), scores in zip(groups.values(), judged, strict=True):
        if len(scores) != len(indices):
            raise RunError(f"The judge scored {len(scores)} of {len(indices)} answers to record {prompt.record.id}.")
        scored |= dict(zip(indices, scores, strict=True))
    in_order = iter([scored[index] for index in range(len(requests))])
    return [list(islice(in_order, len(run.requests))) for run in active]


def _sample(requests: Sequence[Request], sample: Sampler, sampling: Sampling) -> list[Trajectory]:
    """One trajectory per request, which holds its request; a user's sampler may have made mistakes."""
    trajectories = sample(requests, sampling) if requests else []
    if len(trajectories) != len(requests):
        raise RunError(f"The sampler gave {len(trajectories)} continuations for {len(requests)} requests.")
    for trajectory, request in zip(trajectories, requests, strict=True):
        begins_as_forced = list(trajectory.ids[: len(request.forced_ids)]) == list(request.forced_ids)
        if trajectory.finish != "error" and not begins_as_forced:
            raise RunError(f"The sampler did not keep the forced tokens of record {request.record}.")
    return [replace(trajectory, request=request) for trajectory, request in zip(trajectories, requests, strict=True)]


@dataclass(frozen=True)
class Refilled:
    """Groups whose rewards differ, the number of prompts drawn for them, and all groups that were sampled."""

    groups: list[Group]
    prompts: int
    all_groups: list[Group]


def refill(
    draw: Callable[[int], Sequence[Prompt]],
    run: Callable[[Sequence[Prompt]], list[Group]],
    wanted: int,
    tries: int = 10,
) -> Refilled:
    """Dynamic sampling (DAPO, arXiv 2503.14476): draw prompts until `wanted` groups have unequal rewards.

    Args:
        draw: returns at most so many further prompts; fewer or none where the budget ends.
        run: `drive` on prompts, with the same `occurrences` for the whole rollout.
        wanted: number of groups.
        tries: the most generations; after them, the groups so far are returned, possibly none.
    """
    kept: list[Group] = []
    all_groups: list[Group] = []
    used = 0
    for _ in range(tries):
        prompts = draw(wanted - len(kept))
        if not prompts:  # the budget ends
            break
        used += len(prompts)
        groups = run(prompts)
        all_groups += groups
        kept += [group for group in groups if group.informative]
        if len(kept) >= wanted:
            break
    return Refilled(kept[:wanted], used, all_groups)


def measures(groups: Sequence[Group]) -> dict[str, float]:
    """Metrics of a rollout: means of rewards and their parts, of sampled lengths, and of the groups' own facts."""
    members = [member for group in groups for member in group.members]
    numbers: dict[str, list[float]] = {
        "reward": [member.reward for member in members if member.reward is not None],
        "length": [float((~forced_tokens(member.trajectory)).sum()) for member in members],
        "truncated": [float(member.trajectory.finish == "length") for member in members],
        "informative_groups": [float(group.informative) for group in groups],
    }
    for member in members:
        for name, reward in member.parts.items():
            numbers.setdefault(f"reward/{name}", []).append(reward)
    for group in groups:
        for name, fact in group.facts.items():
            numbers.setdefault(f"rollout/{name}", []).append(float(fact))
    return {name: sum(samples) / len(samples) for name, samples in numbers.items() if samples}
