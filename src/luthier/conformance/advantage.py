"""The checks of advantages: on an invented rollout of three groups, in which one answer has no reward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor

from luthier.conformance.base import Failed, check_options, variants
from luthier.rollouts.base import Advantage, Arrays, Group, Prompt, Rollout, row_id
from luthier.types import Record, Request, Scored, Trajectory

GROUPS, ANSWERS, FORCED = 3, 4, 5


def tiny_rollout(link: Advantage, order: Sequence[int] = range(GROUPS)) -> Rollout:
    """Answers of unequal length in groups of this order; the last answer of each group begins with a trained prefix."""
    rollout = Rollout.of([_group(number) for number in order])
    names = [row_id(member.trajectory) for member in rollout.members]
    for column in link.READS:
        arrays = []
        for name, length in zip(names, rollout.lengths, strict=True):
            draw = numpy.random.default_rng(list(f"{name}{column}".encode()))
            arrays.append(draw.normal(0.5, 0.2, length))
        rollout.columns.setdefault(column, arrays)
    # Two rewards by name, for links that normalise each reward by itself.
    draws = numpy.array([numpy.random.default_rng(list(name.encode())).random(2) for name in names])
    return replace(rollout, parts={"one": draws[:, 0], "two": draws[:, 1]})


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
    record = Record(name, "prompt_completion", {"prompt": "p", "completion": "c"}, "invented")
    return Group(Prompt(record, (5, 6)), tuple(members))


def _start_values(link: Advantage, rollout: Rollout) -> Arrays:
    """The input of the link in a chain: rewards, or one advantage for all tokens of an answer."""
    values = rollout.start_values()
    return rollout.spread(rollout.totals(values)) if link.TAKES == "advantages" else values


def credits(link: Advantage, rollout: Rollout) -> Arrays:
    """Advantages per answer that has a reward, [n] each; what the link gives to the others does not count."""
    computed = link.compute(rollout, _start_values(link, rollout))
    if len(computed) != len(rollout.rewards):
        raise Failed(f"{link!r}: `compute` returns numbers for {len(computed)} of {len(rollout.rewards)} answers")
    arrays = rollout.spread(computed) if isinstance(computed, numpy.ndarray) else list(computed)
    return [array for array, reward in zip(arrays, rollout.rewards, strict=True) if numpy.isfinite(reward)]


def check_shapes(links: Sequence[Advantage]) -> None:
    """One finite number for each token of an answer that has a reward."""
    for link in links:
        rollout = tiny_rollout(link)
        arrays = credits(link, rollout)
        if [numpy.shape(array) for array in arrays] != [(n,) for n in rollout.lengths[numpy.isfinite(rollout.rewards)]]:
            raise Failed(f"{link!r}: not one number per token")
        if not all(numpy.isfinite(array).all() for array in arrays):
            raise Failed(f"{link!r}: a credit is not finite: does an answer without a reward count?")


def check_pure(link: Advantage) -> None:
    """The same rollout gives the same credits, and its rewards do not change."""
    rollout = tiny_rollout(link)
    values = _start_values(link, rollout)
    copies = [array.copy() for array in values]
    link.compute(rollout, values)
    if not all(numpy.array_equal(*pair, equal_nan=True) for pair in zip(values, copies, strict=True)):
        raise Failed("`compute` changes the values that it receives: copy them")
    if any(map(_differ, credits(link, tiny_rollout(link)), credits(link, tiny_rollout(link)))):
        raise Failed("the same rollout gives other credits: is there a random call?")


def check_order(link: Advantage) -> None:
    """Groups in another order get the same credits."""
    order = (2, 0, 1)
    rollout = tiny_rollout(link, order)
    arrays = credits(link, rollout)
    by_group = numpy.split(numpy.arange(len(arrays)), _ends(rollout))
    sorted_back = []
    for group in range(GROUPS):
        sorted_back += [arrays[index] for index in by_group[order.index(group)]]
    if any(map(_differ, sorted_back, credits(link, tiny_rollout(link)))):
        raise Failed("with the groups in another order an answer is credited otherwise")


def _ends(rollout: Rollout) -> list[int]:
    counted = rollout.group_of[numpy.isfinite(rollout.rewards)]
    return numpy.cumsum(numpy.bincount(counted))[:-1].tolist()


def _differ(first: numpy.ndarray, second: numpy.ndarray) -> bool:
    return first.shape != second.shape or not numpy.allclose(first, second, rtol=1e-12, atol=1e-12)


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of an advantage, in the order they are run."""
    links = variants(part)

    def values(link: Advantage) -> dict[str, Tensor]:
        return {"credits": torch.from_numpy(numpy.concatenate(credits(link, tiny_rollout(link))))}

    yield "one finite number per token", lambda: check_shapes(links)
    yield "deterministic, its input unchanged", lambda: check_pure(links[0])
    yield "every option changes something", lambda: check_options(links, values)
    yield "independent of the order of groups", lambda: check_order(links[0])
