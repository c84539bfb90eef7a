"""The conformance matrix of advantages: on a made-up rollout of three groups, one answer of which has no reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor

from luthier.conformance.base import Failed, check_options, variants
from luthier.rollouts.base import Advantage, Arrays, Group, Prompt, Rollout
from luthier.types import Record, Request, Scored, Trajectory

GROUPS, ANSWERS, FORCED = 3, 4, 5


def made_up(link: Advantage, order: Sequence[int] = range(GROUPS)) -> Rollout:
    """Answers of unequal length; the last of each group begins with a trained prefix. Groups stand in this order."""
    rollout = Rollout.of([_group(number) for number in order])
    names = [one.trajectory.request.metadata["row"] for one in rollout.members if one.trajectory.request]
    for read in link.READS:
        draws = [numpy.random.default_rng(list(f"{name}{read}".encode())) for name in names]
        columns = [draw.normal(0.5, 0.2, n) for draw, n in zip(draws, rollout.lengths, strict=True)]
        rollout.columns.setdefault(read, columns)
    draws = [numpy.random.default_rng(list(name.encode())) for name in names]
    rewards = {part: numpy.array([draw.random() for draw in draws]) for part in ("one", "two")}
    return replace(rollout, parts=rewards)


def _group(number: int) -> Group:
    draw = numpy.random.default_rng(number)
    name = f"record-{number}"
    members = []
    for index in range(ANSWERS):
        forced = draw.integers(1, 50, FORCED if index == ANSWERS - 1 else 0).tolist()
        ids = [*forced, *draw.integers(1, 50, int(draw.integers(2, 6))).tolist()]
        request = Request([5, 6], name, tuple(forced), bool(forced), metadata={"row": f"{name}#{index}"})
        reward = None if number == index == 0 else float(draw.random())
        members.append(Scored(Trajectory(ids, "stop", name, request=request), reward))
    record = Record(name, "prompt_completion", {"prompt": "p", "completion": "c"}, "made up")
    return Group(Prompt(record, (5, 6)), tuple(members))


def _given(link: Advantage, rollout: Rollout) -> Arrays:
    """What stands before the link in a chain: rewards, or one advantage for all tokens of an answer."""
    values = rollout.start_values()
    return rollout.spread(rollout.totals(values)) if link.TAKES == "advantages" else values


def credits(link: Advantage, rollout: Rollout) -> Arrays:
    """What the link makes of the rollout's rewards, per answer; where there is no reward nothing is said."""
    found = link.compute(rollout, _given(link, rollout))
    values = rollout.spread(found) if isinstance(found, numpy.ndarray) else list(found)
    return [value for value, reward in zip(values, rollout.rewards, strict=True) if numpy.isfinite(reward)]


def check_shapes(links: Sequence[Advantage]) -> None:
    """One finite number for each token of an answer that has a reward."""
    for link in links:
        rollout = made_up(link)
        lengths = [n for n, reward in zip(rollout.lengths, rollout.rewards, strict=True) if numpy.isfinite(reward)]
        values = credits(link, rollout)
        if [numpy.shape(value) for value in values] != [(n,) for n in lengths]:
            raise Failed(f"{link!r}: not one number per token")
        if not all(numpy.isfinite(value).all() for value in values):
            raise Failed(f"{link!r}: a credit is not finite: does an answer without a reward count?")


def check_pure(link: Advantage) -> None:
    """The same rollout gives the same credits, and its rewards are left as they were."""
    rollout = made_up(link)
    given = _given(link, rollout)
    kept = [value.copy() for value in given]
    link.compute(rollout, given)
    if any(not numpy.array_equal(one, other, equal_nan=True) for one, other in zip(given, kept, strict=True)):
        raise Failed("the values that were handed in are changed: copy them")
    if any(map(_differ, credits(link, made_up(link)), credits(link, made_up(link)))):
        raise Failed("the same rollout gives other credits: is there a random call?")


def check_order(link: Advantage) -> None:
    """Groups in another order get the same credits."""
    order = (2, 0, 1)
    rollout = made_up(link, order)
    found = credits(link, rollout)
    by_group = numpy.split(numpy.arange(len(found)), _ends(rollout))
    sorted_back = [found[place] for number in range(GROUPS) for place in by_group[order.index(number)]]
    if any(map(_differ, sorted_back, credits(link, made_up(link)))):
        raise Failed("with the groups in another order an answer is credited otherwise")


def _ends(rollout: Rollout) -> list[int]:
    counted = rollout.group_of[numpy.isfinite(rollout.rewards)]
    return numpy.cumsum(numpy.bincount(counted))[:-1].tolist()


def _differ(one: Any, other: Any) -> bool:
    return one.shape != other.shape or not numpy.allclose(one, other, rtol=1e-12, atol=1e-12)


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of an advantage, in the order they are run."""
    made = variants(part)

    def values(link: Advantage) -> dict[str, Tensor]:
        return {"credits": torch.from_numpy(numpy.concatenate(credits(link, made_up(link))))}

    yield "one finite number per token", lambda: check_shapes(made)
    yield "deterministic, leaves what it is given", lambda: check_pure(made[0])
    yield "every option changes something", lambda: check_options(made, values)
    yield "independent of the order of groups", lambda: check_order(made[0])
