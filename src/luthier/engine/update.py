"""One update, in one order: count, prepare, couple, backward, update terms, step; its rows are drawn and selected.

Every term is divided by its *global* unit count, so the gradient cannot depend on how the update was split over
micro-batches or ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from luthier.engine.couple import couple, refuse_batch_statistics
from luthier.engine.distributed import World
from luthier.engine.master_weights import MasterWeights
from luthier.errors import RunError
from luthier.models.kernels.gradients import GradientSums, added_in_products, adding
from luthier.models.kernels.lean import kept_lean
from luthier.models.policy import Policy
from luthier.objectives.base import Objective, total_of
from luthier.tuners.base import Tuner
from luthier.types import Batch, Term
from luthier.update import Update

UNITS: tuple[str, ...] = ("targets", "weights", "records")
"""What every update is counted in; parts may count more."""


class NotFinite(RunError):
    """A loss or gradient is NaN or infinite; the model has not been touched by this update."""


@dataclass(frozen=True)
class UpdateReport:
    """Numbers of one update, over all ranks."""

    loss: float
    gradient_norm: float
    counts: dict[str, float]
    meters: dict[str, float]


def run_update(
    policy: Policy,
    objective: Objective,
    tuners: Sequence[Tuner],
    masters: MasterWeights,
    update: Update,
    *,
    clip: float | None,
    factor: float,
    world: World,
) -> UpdateReport:
    """Carry out `update` on its batches (this rank's share) and move the model.

    Args:
        clip: bound of the gradient's norm, of the model and of each companion apart, or None.
        factor: of the optimiser's learning rate at this update.

    Raises:
        NotFinite: on every rank, naming the records; nothing was changed.
        RunError: the update has no target at all, or the step broke off with the weights half moved.
    """
    refuse_batch_statistics(policy.module, len(update.batches), world.size)
    # Count on the CPU, before batches go to the device: counting on a GPU would synchronise.
    forwarded = count(objective, update.batches, world, tuners)
    without_gradient = count(objective, update.without_gradient, world, tuners)
    units = {**forwarded, **without_gradient}
    update.counts = {unit: forwarded.get(unit, 0.0) + without_gradient.get(unit, 0.0) for unit in units}
    device = next(policy.module.parameters()).device
    update.batches = [batch.to(device) for batch in update.batches]
    update.sum_tensors = world.sum_tensors
    if not any(update.counts[unit] for unit in UNITS):
        records = ", ".join(record for batch in update.batches for record in batch.examples[:4])
        raise RunError(f"Update {update.index} has no target token (records {records}, ...).")
    objective.prepare(policy, update)
    for tuner in tuners:
        tuner.before_update(policy.module, update)
    masters.accumulate(several=len(update.batches) > 1 or world.size > 1)
    update.gradient, update.optimizer_state = masters.gradient, masters.optimizer_state
    coupled = couple(policy, objective, update, world)
    if not math.isfinite(coupled):
        raise _not_finite("loss", _records(update), update, world)
    with added_in_products(policy.module), kept_lean(policy.module):
        loss = _backward_all(policy, objective, tuners, update, masters.sums, world)
    if world.rank == 0:  # gradients are summed over ranks: what belongs to no data is added once
        loss += coupled
        loss += _backward_terms([t for o in (objective, *tuners) for t in o.update_terms(policy, update)], update)
    masters.reduce(world)
    for tuner in tuners:
        tuner.before_step(policy.module, update)
    norms = masters.norms()
    if not all(math.isfinite(norm) for norm in norms):
        raise _not_finite("gradient", _records(update), update, world)
    scales = [min(1.0, clip / (norm + 1e-6)) if clip is not None else 1.0 for norm in norms]
    _step(masters, scales, factor, update)
    objective.after_step(policy, update)
    for tuner in tuners:
        tuner.after_step(policy.module, update)
    return _report(loss, norms[0], update, forwarded, world)


def count(
    objective: Objective, batches: Sequence[Batch], world: World, tuners: Sequence[Tuner] = ()
) -> dict[str, float]:
    """Units over all micro-batches and ranks, in one reduction."""
    totals = dict.fromkeys(UNITS, 0.0)
    for batch in batches:
        for part in (objective, *tuners):
            for name, number in part.units(batch).items():
                totals[name] = totals.get(name, 0.0) + number
    return world.sum_numbers(totals)


def _backward_all(
    policy: Policy, objective: Objective, tuners: Sequence[Tuner], update: Update, sums: GradientSums, world: World
) -> float:
    """Every micro-batch of this rank; a loss that is no number stops all ranks, which would wait for this one."""
    total, spoiled = 0.0, []
    for batch in update.batches:
        value = backward(policy, objective, tuners, batch, update, sums)
        if not math.isfinite(value):
            spoiled = list(batch.examples)
            break
        total += value
    if world.sum_numbers({"spoiled": float(len(spoiled))})["spoiled"]:
        raise _not_finite("loss", spoiled, update, world)
    return total


def backward(
    policy: Policy, objective: Objective, tuners: Sequence[Tuner], batch: Batch, update: Update, sums: GradientSums
) -> float:
    """Forward of one micro-batch, and backward if its loss is finite; returns its share of the loss."""
    parts = (objective, *tuners)
    with ExitStack() as scopes:
        scopes.enter_context(objective.micro_batch_context(policy, batch, update))
        for tuner in tuners:
            scopes.enter_context(tuner.micro_batch_context(policy, batch, update))
        loss = total_of([term for part in parts for term in part.terms(policy, batch, update)], update.counts)
        if loss is None:
            return 0.0
        value = float(loss.detach())
        if loss.requires_grad and math.isfinite(value):
            with adding(sums):
                loss.backward()
    return value


def _step(masters: MasterWeights, scales: Sequence[float], factor: float, update: Update) -> None:
    """Move the weights; when that breaks off, say so: to try the update again would move some of them twice."""
    try:
        masters.step(scales, factor)
    except (MemoryError, RuntimeError) as error:
        raise RunError(
            f"Update {update.index} broke off while the weights were being moved: {error}",
            "Its last checkpoint is good: free some memory and run again with --resume.",
        ) from error


def _backward_terms(terms: list[Term], update: Update) -> float:
    loss = total_of(terms, update.counts)
    if loss is None:
        return 0.0
    loss.backward()
    return float(loss.detach())


def _report(loss: float, norm: float, update: Update, forwarded: dict[str, float], world: World) -> UpdateReport:
    # A meter is a mean over what forwards have read: rows without a gradient have no part in it.
    sums = {f"meter/{name}": float(total) for name, (_, total) in update.meters.items()}
    reduced = world.sum_numbers({"loss": loss, **sums})
    meters = {
        name: reduced[f"meter/{name}"] / forwarded[unit]
        for name, (unit, _) in update.meters.items()
        if forwarded.get(unit)
    }
    return UpdateReport(reduced["loss"], norm, update.counts, meters)


def _records(update: Update) -> list[str]:
    return [record for batch in update.batches for record in batch.examples]


def _not_finite(what: str, records: list[str], update: Update, world: World) -> NotFinite:
    records = list(world.sum_numbers(dict.fromkeys(records, 1.0)))
    shown = ", ".join(records[:16]) + (f" and {len(records) - 16} more" if len(records) > 16 else "")
    return NotFinite(
        f"The {what} of update {update.index} is not a finite number. Records in the batch: {shown}.",
        "The state before this update is saved. Look at these records, lower train.optimizer.lr, or run with"
        " train.precision=float32.",
    )
