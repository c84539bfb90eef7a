"""The first of two passes, for losses in which the records of an update meet.

Pass 1 computes the features of every micro-batch without gradient, gathers them over ranks, and takes the loss
and its gradient with respect to the features, once. Pass 2 is the ordinary backward of each micro-batch: it
computes the features again, with the same dropout, and carries that gradient on. This is the chain rule, exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from luthier.engine.distributed import World
from luthier.errors import RunError
from luthier.models.context import same_draws
from luthier.models.policy import Policy
from luthier.models.wide import widened
from luthier.objectives.base import CoupledObjective, Objective, total_of
from luthier.objectives.sum import weighted_members
from luthier.types import Batch, Term
from luthier.update import Update

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Gathered:
    """What the records of an update bring to a coupled loss: those of all ranks, in the order of their names.

    Attributes:
        features: float32 or wider, [R,...] over the R records of the update.
        streams: row streams of the batches, [R,...].
        own: where the records of this rank stand among them, in the order of its micro-batches.
    """

    features: Tensors
    streams: Tensors
    own: Tensor


def couple(policy: Policy, objective: Objective, update: Update, world: World) -> float:
    """Carry out pass 1 for every coupled member of the objective: leaves `update.feature_grads`, returns their loss.

    The loss is the same number on every rank. Parameters that a loss reads itself get their gradient here, on
    rank 0. An update that is one batch on one rank is differentiated directly, without a second pass.

    Raises:
        RunError: features that are not one per record.
    """
    update.repeatable = partial(repeatable, update)
    one_forward = len(update.batches) == 1 and world.size == 1
    total = 0.0
    for part, factor in weighted_members(objective):
        if isinstance(part, CoupledObjective):
            carry_out = _couple_at_once if one_forward else _couple_in_two_passes
            total += carry_out(policy, objective, part, factor, update, world)
    return total


def _couple_at_once(
    policy: Policy, objective: Objective, part: CoupledObjective, factor: float, update: Update, world: World
) -> float:
    """Forward and backward of the whole update: its graph fits, so nothing is computed twice."""
    (batch,) = update.batches
    # The backward belongs to the context too: hooks that the objective set must still be there.
    with objective.micro_batch_context(policy, batch, update):
        gathered = gather_features(policy, update, [_features(policy, part, batch, update)], world)
        loss = total_of(_terms(part, gathered, update, world), update.counts)
        if loss is not None and loss.requires_grad:
            (factor * loss).backward()
    distribute(update, part, {}, gathered.own)  # pass 2 finds nothing left to carry on
    return 0.0 if loss is None else factor * float(loss.detach())


def _couple_in_two_passes(
    policy: Policy, objective: Objective, part: CoupledObjective, factor: float, update: Update, world: World
) -> float:
    """Features of each micro-batch without gradient, then the gradient with respect to them, for pass 2."""
    features = [_look(policy, objective, part, batch, update) for batch in update.batches]
    gathered = gather_features(policy, update, features, world)
    loss, gradient = coupled_gradient(part, factor, gathered, update, world)
    distribute(update, part, gradient, gathered.own)
    return loss


def gather_features(policy: Policy, update: Update, features: Sequence[Tensors], world: World) -> Gathered:
    """Bring the features of this rank's micro-batches together with those of the other ranks.

    Args:
        features: of each micro-batch by name, [records of the batch,...].
    """
    records = [record for batch in update.batches for record in batch.examples]
    streams = [_row_streams(batch) for batch in update.batches]
    ranks = [(records, joined(features), joined(streams))]
    if world.size > 1:  # what travels must be on the processor
        ranks = world.gather((records, _on_processor(ranks[0][1]), _on_processor(ranks[0][2])))
    device = next(policy.module.parameters()).device
    # In one order, however the update was split: sums round the same, and no rank's part comes first.
    order = _order([record for names, _, _ in ranks for record in names])
    all_features = joined([theirs for _, theirs, _ in ranks])
    all_streams = joined([theirs for _, _, theirs in ranks])
    before = sum(len(names) for names, _, _ in ranks[: world.rank])
    return Gathered(
        features={name: widened(feature.to(device)[order]) for name, feature in all_features.items()},
        streams={name: stream.to(device)[order] for name, stream in all_streams.items()},
        own=order.argsort()[before : before + len(records)],
    )


def coupled_gradient(
    part: CoupledObjective, factor: float, gathered: Gathered, update: Update, world: World
) -> tuple[float, Tensors]:
    """`factor` × the coupled loss, and its gradient with respect to the features, [R,...] by name.

    Every rank computes it over all records: cheaper than to send the gradient, and the same number everywhere.
    """
    # Labels and other integers have no gradient.
    floating = {name: feature for name, feature in gathered.features.items() if feature.is_floating_point()}
    leaves = {name: feature.requires_grad_() for name, feature in floating.items()}
    loss = total_of(_terms(part, gathered, update, world), update.counts)
    if loss is None:
        return 0.0, {}
    return factor * float(loss.detach()), _differentiate(factor * loss, leaves, world)


def distribute(update: Update, part: CoupledObjective, gradient: Tensors, own: Tensor) -> None:
    """Leave each micro-batch of this rank its rows of the gradient, for pass 2."""
    cuts = own.split([len(batch.examples) for batch in update.batches])
    update.set_feature_grads(part, [{name: rows[cut] for name, rows in gradient.items()} for cut in cuts])


def _row_streams(batch: Batch) -> Tensors:
    return {name: stream.values for name, stream in batch.streams.items() if stream.axis == "row"}


def _look(policy: Policy, objective: Objective, part: CoupledObjective, batch: Batch, update: Update) -> Tensors:
    with torch.no_grad(), objective.micro_batch_context(policy, batch, update):
        found = _features(policy, part, batch, update)
    return {name: values.detach() for name, values in found.items()}  # one may be a parameter itself


def _features(policy: Policy, part: CoupledObjective, batch: Batch, update: Update) -> Tensors:
    with repeatable(update, batch):
        found = part.features(policy, batch)
    for name, values in found.items():
        if len(values) != len(batch.examples):
            raise RunError(
                f"{type(part).__name__}.features gave `{name}` of shape {tuple(values.shape)} for"
                f" {len(batch.examples)} records.",
                "The first axis of a feature counts the records of the batch.",
            )
    return found


def _terms(part: CoupledObjective, gathered: Gathered, update: Update, world: World) -> list[Term]:
    """The coupled loss; all ranks compute the same, so its meters count on one."""
    aside = replace(update, meters={})
    terms = part.coupled_loss(gathered.features, gathered.streams, aside)
    for name, (unit, total) in aside.meters.items():
        update.meter(name, total if world.rank == 0 else 0.0, unit)
    return terms


def _order(records: Sequence[str]) -> Tensor:
    """Places of the records by name: the loss sums in one order, however the update was split."""
    return torch.tensor(sorted(range(len(records)), key=records.__getitem__), dtype=torch.long)


def _differentiate(loss: Tensor, leaves: Tensors, world: World) -> Tensors:
    """The gradient with respect to the leaves; on rank 0 also that of parameters within the loss."""
    if not loss.requires_grad:
        return {}
    if world.rank == 0:
        loss.backward()
        return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: grad for name, grad in zip(leaves, gradients, strict=True) if grad is not None}


def joined(pieces: Sequence[Tensors]) -> Tensors:
    """Tensors of several batches one after the other, by name; a rank without a batch brings none."""
    full = [piece for piece in pieces if piece]
    return {name: torch.cat([piece[name] for piece in full]) for name in full[0]} if full else {}


def _on_processor(tensors: Tensors) -> Tensors:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def repeatable(update: Update, batch: Batch) -> AbstractContextManager[None]:
    """Random numbers (dropout) keyed by (seed, update, records), the same in both passes; others go on as before."""
    return same_draws(f"{update.seed}/{update.index}/{'/'.join(batch.examples)}", batch.ids.device)


def refuse_batch_statistics(module: nn.Module, pieces: int, ranks: int) -> None:
    """Refuse a split update of a model that normalises by the statistics of what is in one forward.

    Raises:
        RunError: naming the layer.
    """
    if pieces == 1 and ranks == 1:
        return
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
            raise RunError(
                f"Layer `{name}` normalises by the statistics of each forward ({type(layer).__name__} in training"
                f" mode), so cutting an update into {pieces} micro-batches on {ranks} rank(s) would change the model.",
                "Set train.batch.micro so that an update is one forward, or freeze these layers in eval mode.",
            )
