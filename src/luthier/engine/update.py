"""One update of rows that are drawn and selected: count, prepare, couple, backward, update terms, step.

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
from luthier.models.kernels.gradients import GradientSums, accumulating_in_place, added_in_products
from luthier.models.kernels.lean import recompute_intermediates
from luthier.models.policy import Policy
from luthier.objectives.base import Objective, total_of
from luthier.tuners.base import Tuner
from luthier.types import Batch, Term
from luthier.update import Update

UNITS: tuple[str, ...] = ("targets", "weights", "records")
"""Units that every update counts; parts may count more."""


class NotFinite(RunError):
    """A loss or gradient is NaN or infinite; this update has changed no weight."""


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
        NotFinite: on every rank, naming the records; no weight has changed.
        RunError: the update has no target, or the step failed with some weights moved.
    """
    parts = (objective, *tuners)
    refuse_batch_statistics(policy.module, len(update.batches), world.size)
    forwarded = _count_update(objective, tuners, update, world)
    device = next(policy.module.parameters()).device
    update.batches = [batch.to(device) for batch in update.batches]
    update.sum_tensors = world.sum_tensors

    # Preparations read the model as it was before the update, so they precede every backward.
    objective.prepare(policy, update)
    for tuner in tuners:
        tuner.before_update(policy.module, update)

    # Coupled losses first: the backward of each micro-batch starts from the gradient of its features.
    masters.accumulate(several=len(update.batches) > 1 or world.size > 1)
    update.gradient, update.optimizer_state = masters.gradient, masters.optimizer_state
    coupled = couple(policy, objective, update, world)
    if not math.isfinite(coupled):  # the same number on every rank, so all raise
        raise _not_finite("loss", _records(update), update, world)
    with added_in_products(policy.module), recompute_intermediates(policy.module):
        loss = _backward_all(policy, objective, tuners, update, masters.sums, world)
    # Gradients are summed over ranks, so what belongs to the update and to no record is added on one.
    if world.rank == 0:
        loss += coupled
        loss += _backward_terms([term for part in parts for term in part.update_terms(policy, update)], update)
    masters.reduce(world)

    # The gradient is complete and not yet clipped: tuners may read it, or change it before its norm is measured.
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


def _count_update(objective: Objective, tuners: Sequence[Tuner], update: Update, world: World) -> dict[str, float]:
    """Set `update.counts`; returns the units of rows that forwards read.

    On the CPU, before batches go to the device: counting on a GPU would synchronise.

    Raises:
        RunError: the update has no target.
    """
    forwarded = count(objective, update.batches, world, tuners)
    without_gradient = count(objective, update.without_gradient, world, tuners)
    units = {**forwarded, **without_gradient}
    update.counts = {unit: forwarded.get(unit, 0.0) + without_gradient.get(unit, 0.0) for unit in units}
    if not any(update.counts[unit] for unit in UNITS):
        records = ", ".join(record for batch in update.batches for record in batch.examples[:4])
        raise RunError(f"Update {update.index} has no target token (records {records}, ...).")
    return forwarded


def count(
    objective: Objective, batches: Sequence[Batch], world: World, tuners: Sequence[Tuner] = ()
) -> dict[str, float]:
    """Units over all micro-batches and ranks, in one reduction."""
    totals = dict.fromkeys(UNITS, 0.0)
    for batch in batches:
        for part in (objective, *tuners):
            for unit, number in part.units(batch).items():
                totals[unit] = totals.get(unit, 0.0) + number
    return world.sum_numbers(totals)


def _backward_all(
    policy: Policy, objective: Objective, tuners: Sequence[Tuner], update: Update, sums: GradientSums, world: World
) -> float:
    """Backward of every micro-batch of this rank; returns the sum of their losses.

    Raises:
        NotFinite: on all ranks: the others would wait for one that raises alone.
    """
    total, not_finite = 0.0, []
    for batch in update.batches:
        loss = backward(policy, objective, tuners, batch, update, sums)
        if not math.isfinite(loss):
            not_finite = list(batch.examples)
            break
        total += loss
    if world.sum_numbers({"not_finite": float(len(not_finite))})["not_finite"]:
        raise _not_finite("loss", not_finite, update, world)
    return total


def backward(
    policy: Policy, objective: Objective, tuners: Sequence[Tuner], batch: Batch, update: Update, sums: GradientSums
) -> float:
    """Forward of one micro-batch, and backward if its loss is finite; returns its share of the loss."""
    parts = (objective, *tuners)
    with ExitStack() as contexts:
        contexts.enter_context(objective.micro_batch_context(policy, batch, update))
        for tuner in tuners:
            contexts.enter_context(tuner.micro_batch_context(policy, batch, update))
        total = total_of([term for part in parts for term in part.terms(policy, batch, update)], update.counts)
        if total is None:
            return 0.0
        loss = float(total.detach())
        # Inside the contexts: checkpointed layers are computed again here, with the hooks that a part has set.
        if total.requires_grad and math.isfinite(loss):
            with accumulating_in_place(sums):
                total.backward()
    return loss


def _step(masters: MasterWeights, scales: Sequence[float], factor: float, update: Update) -> None:
    """Move the weights.

    Raises:
        RunError: the step failed. It is not an error that is tried again, which would move some weights twice.
    """
    try:
        masters.step(scales, factor)
    except (MemoryError, RuntimeError) as error:
        raise RunError(
            f"Update {update.index} broke off while the weights were being moved: {error}",
            "Its last checkpoint is good: free some memory and run again with --resume.",
        ) from error


def _backward_terms(terms: list[Term], update: Update) -> float:
    total = total_of(terms, update.counts)
    if total is None:
        return 0.0
    total.backward()
    return float(total.detach())


def _report(loss: float, norm: float, update: Update, forwarded: dict[str, float], world: World) -> UpdateReport:
    sums = {f"meter/{name}": float(total) for name, (_, total) in update.meters.items()}
    reduced = world.sum_numbers({"loss": loss, **sums})
    # A meter is a mean over rows that forwards have read: rows without a gradient have no part in it.
    meters = {}
    for name, (unit, _) in update.meters.items():
        if forwarded.get(unit):
            meters[name] = reduced[f"meter/{name}"] / forwarded[unit]
    return UpdateReport(reduced["loss"], norm, update.counts, meters)


def _records(update: Update) -> list[str]:
    return [record for batch in update.batches for record in batch.examples]


def _not_finite(quantity: str, records: list[str], update: Update, world: World) -> NotFinite:
    # Every rank names the records of all: only the ranks together know whose numbers were not finite.
    records = list(world.sum_numbers(dict.fromkeys(records, 1.0)))
    listed = ", ".join(records[:16]) + (f" and {len(records) - 16} more" if len(records) > 16 else "")
    return NotFinite(
        f"The {quantity} of update {update.index} is not a finite number. Records in the batch: {listed}.",
        "The state before this update is saved. Check these records, lower train.optimizer.lr, or run with"
        " train.precision=float32.",
    )
