"""Whether an objective's gradient is the derivative of its loss, by finite differences, and covers every target.

An objective that detaches a factor (dft its weights) names that in DETACHED; then gradient and derivative must differ.
So a forgotten `detach` shows where DETACHED names the factor, and a superfluous `detach` where DETACHED is empty.
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
from luthier.conformance.training import TOLERANCE, trained, trainer, weights_of
from luthier.engine.micro_batches import Batching
from luthier.engine.trainer import Trainer
from luthier.objectives.base import Objective
from luthier.types import Row

WHOLE = Batching(RECORDS, 10_000, "padded")
STEP = 1e-3
ALLOWED = 1e-3
"""Relative difference of derivatives: transformers computes norms in float32, which limits the precision."""


def check_derivative(objective: Objective, tuner: Any) -> None:
    """The derivative of the loss along a direction is gradient x direction, unless part of the loss is DETACHED."""
    gradient = _gradient(objective, tuner)
    direction = _direction(gradient)
    by_gradient = float(sum((gradient[name] * direction[name]).sum() for name in gradient))
    ahead, behind = (_loss(objective, tuner, direction, step) for step in (STEP, -STEP))
    by_difference = (ahead - behind) / (2 * STEP)
    same = abs(by_difference - by_gradient) <= ALLOWED * max(abs(by_gradient), abs(by_difference))
    if same and objective.DETACHED:
        detached = ", ".join(objective.DETACHED)
        raise Failed(
            f"the gradient is the derivative of the whole loss, although DETACHED names {detached}: is a"
            " `detach` forgotten?"
        )
    if not same and not objective.DETACHED:
        raise Failed(
            f"the loss changes by {by_difference:.6g} per step where its gradient says {by_gradient:.6g}: is something"
            " detached? If that is meant, name the factor in DETACHED."
        )


def _run(objective: Objective, tuner: Any) -> Trainer:
    return trainer(objective, tuner, rows_for(objective), WHOLE)


def _gradient(objective: Objective, tuner: Any) -> dict[str, Tensor]:
    """The gradient of one update by parameter name: the step of gradient descent, divided by its rate.

    Companions have learning rates of their own.
    """
    run = _run(objective, tuner)
    rates = {name: group.rate for group in run.masters.groups for name in group.parameters}
    before = weights_of(run)
    run.train()
    return {name: (before[name] - after) / rates[name] for name, after in weights_of(run).items()}


def _direction(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient's direction plus a random one: either alone could be blind to an error of the gradient."""
    draw = torch.Generator().manual_seed(0)
    random = {name: torch.randn(t.shape, generator=draw, dtype=t.dtype) for name, t in gradient.items()}
    norm, random_norm = _norm(gradient), _norm(random)
    return {name: gradient[name] / norm + random[name] / random_norm for name in gradient}


def _norm(tensors: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(tensor.square().sum()) for tensor in tensors.values()))


def _loss(objective: Objective, tuner: Any, direction: dict[str, Tensor], step: float) -> float:
    """The loss of the first update after a step along the direction; references and states do not move."""
    run = _run(objective, tuner)
    with torch.no_grad():
        for name, master in run.masters.master.items():
            master += step * direction[name]
    events: list[dict[str, Any]] = []
    run.observe = events.append
    run.train()
    return events[-1]["loss"]


def check_targets(objective: Objective, tuner: Any) -> None:
    """The gradient depends on the last token that the loss reads, and on no token behind it: its mask is not shifted.

    That token is the last target. For a loss of distributions alone (READS_TARGETS is False) it is the token before,
    which the last distribution is conditioned on.
    """
    rows = [_lengthened(row) for row in rows_for(objective)]
    last, where = (-2, "the last target") if objective.READS_TARGETS else (-3, "the token before the last target")
    gradient = trained(objective, tuner, WHOLE, rows=rows)

    def changes(position: int) -> float:
        changed = [_with_another_token(row, position) for row in rows]
        return apart(gradient, trained(objective, tuner, WHOLE, rows=changed))

    if changes(last + 1) > TOLERANCE:
        raise Failed(f"the gradient depends on a token behind {where}: is a mask shifted to the right?")
    if changes(last) <= TOLERANCE:
        raise Failed(
            f"the gradient does not depend on {where}: is a mask shifted to the left? A loss that does not read which"
            " token a target is declares READS_TARGETS = False."
        )


def _lengthened(row: Row) -> Row:
    """The row with one more token, which is no target."""
    streams = dict(row.streams)
    for name, stream in row.streams.items():
        if stream.axis == "token":
            padded = numpy.append(stream.values, stream.values.dtype.type(stream.pad))
            streams[name] = replace(stream, values=padded)
    return replace(row, ids=numpy.append(row.ids, numpy.int32(0)), streams=streams)


def _with_another_token(row: Row, position: int) -> Row:
    ids = row.ids.copy()
    ids[position] = (ids[position] + 1) % VOCABULARY
    return replace(row, ids=ids)
