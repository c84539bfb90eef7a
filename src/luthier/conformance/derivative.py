"""Whether an objective's gradient is that of its loss: the derivative, by finite differences, and of all targets alone.

A loss that holds something constant (dft its weights) says so in DETACHED; then the two must differ. So a forgotten
`detach` is found where DETACHED names what should be held, and one too many where DETACHED is empty.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy
import torch
from torch import Tensor

from luthier.conformance.base import Failed, apart
from luthier.conformance.needs_of import rows_for
from luthier.conformance.tiny import RECORDS, VOCABULARY
from luthier.conformance.training import TOLERANCE, trained, trainer
from luthier.engine.trainer import Batching, Trainer
from luthier.objectives.base import Objective
from luthier.types import Row

WHOLE = Batching(RECORDS, 10_000, "padded")
STEP = 1e-3
ALLOWED = 1e-3
"""Relative difference of slopes: transformers computes norms in float32, which limits how close they come."""


def check_derivative(objective: Objective, tuner: Any) -> None:
    """The slope of the loss is the one that the gradient tells, unless part of the loss is DETACHED."""
    gradient = _gradient(objective, tuner)
    direction = _direction(gradient)
    told = float(sum((gradient[name] * direction[name]).sum() for name in gradient))
    ahead, behind = (_loss(objective, tuner, direction, by) for by in (STEP, -STEP))
    found = (ahead - behind) / (2 * STEP)
    same = abs(found - told) <= ALLOWED * max(abs(told), abs(found))
    if same and objective.DETACHED:
        held = ", ".join(objective.DETACHED)
        raise Failed(
            f"the gradient is the derivative of the whole loss, although DETACHED names {held}: is a"
            " `detach` forgotten?"
        )
    if not same and not objective.DETACHED:
        raise Failed(
            f"the loss changes by {found:.6g} per step where its gradient says {told:.6g}: is something detached?"
            " If it should be, name it in DETACHED."
        )


def _run(objective: Objective, tuner: Any) -> Trainer:
    return trainer(objective, tuner, rows_for(objective), WHOLE)


def _gradient(objective: Objective, tuner: Any) -> dict[str, Tensor]:
    """By name, of one update: what a step of rate 1 takes off, companions at a rate of their own."""
    run = _run(objective, tuner)
    rates = {name: group.rate for group in run.masters.groups for name in group.parameters}
    before = {name: master.detach().clone() for name, master in run.masters.master.items()}
    run.train()
    return {name: (before[name] - master.detach()) / rates[name] for name, master in run.masters.master.items()}


def _direction(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient's own direction and a random one: neither alone would see every part of a wrong gradient."""
    draw = torch.Generator().manual_seed(0)
    other = {name: torch.randn(t.shape, generator=draw, dtype=t.dtype) for name, t in gradient.items()}
    lengths = [math.sqrt(sum(float(t.square().sum()) for t in one.values())) for one in (gradient, other)]
    return {name: gradient[name] / lengths[0] + other[name] / lengths[1] for name in gradient}


def _loss(objective: Objective, tuner: Any, direction: dict[str, Tensor], by: float) -> float:
    """The loss of the first update, from weights moved along the direction; references and states stay."""
    run = _run(objective, tuner)
    with torch.no_grad():
        for name, master in run.masters.master.items():
            master += by * direction[name]
    events: list[dict[str, Any]] = []
    run.observe = events.append
    run.train()
    return events[-1]["loss"]


def check_targets(objective: Objective, tuner: Any) -> None:
    """The last token that the loss reads matters, and what stands behind it does not: its mask is in the right place.

    That token is the last target itself, or where the loss is one of distributions (READS_TARGETS is False) the one
    before it, which the last of them is conditioned on.
    """
    rows = [_lengthened(row) for row in rows_for(objective)]
    last, where = (-2, "the last target") if objective.READS_TARGETS else (-3, "the token before the last target")

    def changes(place: int) -> float:
        changed = [_with_another_token(row, place) for row in rows]
        one, two = (trained(objective, tuner, WHOLE, rows=given) for given in (rows, changed))
        return apart(one, two)

    if changes(last + 1) > TOLERANCE:
        raise Failed(f"the gradient depends on a token behind {where}: does a mask stand too far right?")
    if changes(last) <= TOLERANCE:
        raise Failed(
            f"the gradient does not depend on {where}: does a mask stand too far left? A loss that never asks which"
            " token stands at a target says READS_TARGETS = False."
        )


def _lengthened(row: Row) -> Row:
    """The row with one more token, which is no target."""
    streams = {
        name: replace(stream, values=numpy.append(stream.values, stream.values.dtype.type(stream.pad)))
        if stream.axis == "token"
        else stream
        for name, stream in row.streams.items()
    }
    return replace(row, ids=numpy.append(row.ids, numpy.int32(0)), streams=streams)


def _with_another_token(row: Row, place: int) -> Row:
    ids = row.ids.copy()
    ids[place] = (ids[place] + 1) % VOCABULARY
    return replace(row, ids=ids)
