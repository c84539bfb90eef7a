"""The first of two passes, for coupled losses: those of all records of an update together.

Pass 1 computes the features of every micro-batch without gradient, gathers them over ranks, and computes the loss and
its gradient with respect to the features, once. Pass 2 is the ordinary backward of each micro-batch: it computes the
features again, with the same dropout, and starts their backward from that gradient. By the chain rule this is exact
(as in GradCache, arXiv 2101.06983).
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
    """Features and streams of all records of an update, over all ranks, in the order of the records' names.

    Attributes:
        features: float32 or wider, [R,...] over the R records of the update.
        streams: row streams of the batches, [R,...].
        own: indices of this rank's records in that order, micro-batch after micro-batch.
    """

    features: Tensors
    streams: Tensors
    own: Tensor


def couple(policy: Policy, objective: Objective, update: Update, world: World) -> float:
    """Pass 1 for every coupled member of the objective: sets `update.feature_grads`, returns the sum of their losses.

    The loss is the same number on every rank. Parameters within a loss itself (a temperature) get their gradient here,
    on rank 0. An update that is one batch on one rank is differentiated directly, without a second pass.

    Raises:
        RunError: a feature does not have one entry per record.
    """
    update.repeatable = partial(repeatable, update)
    one_forward = len(update.batches) == 1 and world.size == 1
    total = 0.0
    for part, factor in weighted_members(objective):
        if not isinstance(part, CoupledObjective):
            continue
        if one_forward:
            total += _couple_at_once(policy, objective, part, factor, update, world)
        else:
            total += _couple_in_two_passes(policy, objective, part, factor, update, world)
    return total


def _couple_at_once(
    policy: Policy, objective: Objective, part: CoupledObjective, factor: float, update: Update, world: World
) -> float:
    """Forward and backward of the whole update in one graph, which fits in memory: nothing is computed twice."""
    (batch,) = update.batches
    # The backward runs inside the context too: it may need hooks that the objective has set there.
    with objective.micro_batch_context(policy, batch, update):
        gathered = gather_features(policy, update, [_features(policy, part, batch, update)], world)
        loss = total_of(_terms(part, gathered, update, world), update.counts)
        if loss is not None and loss.requires_grad:
            (factor * loss).backward()
    distribute(update, part, {}, gathered.own)  # no gradient is left for pass 2
    return 0.0 if loss is None else factor * float(loss.detach())


def _couple_in_two_passes(
    policy: Policy, objective: Objective, part: CoupledObjective, factor: float, update: Update, world: World
) -> float:
    """Features of each micro-batch without gradient, then the gradient with respect to them, for pass 2."""
    features = []
    for batch in update.batches:
        with torch.no_grad(), objective.micro_batch_context(policy, batch, update):
            batch_features = _features(policy, part, batch, update)
        # Detached: a feature may be a parameter itself, which requires a gradient even here.
        features.append({name: feature.detach() for name, feature in batch_features.items()})
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
    streams = []
    for batch in update.batches:
        streams.append({name: stream.values for name, stream in batch.streams.items() if stream.axis == "row"})
    own_features, own_streams = joined(features), joined(streams)
    ranks = [(records, own_features, own_streams)]
    if world.size > 1:
        # One message of Python objects, whose tensors must be on the processor.
        ranks = world.gather((records, _on_processor(own_features), _on_processor(own_streams)))

    all_records = [record for rank_records, _, _ in ranks for record in rank_records]
    all_features = joined([rank_features for _, rank_features, _ in ranks])
    all_streams = joined([rank_streams for _, _, rank_streams in ranks])
    device = next(policy.module.parameters()).device
    # By name, however the update was split: the loss then sums in one order and rounds alike.
    by_name = sorted(range(len(all_records)), key=all_records.__getitem__)
    order = torch.tensor(by_name, dtype=torch.long)
    before = sum(len(rank_records) for rank_records, _, _ in ranks[: world.rank])
    return Gathered(
        features={name: widened(feature.to(device)[order]) for name, feature in all_features.items()},
        streams={name: stream.to(device)[order] for name, stream in all_streams.items()},
        own=order.argsort()[before : before + len(records)],  # the inverse permutation: record → its index
    )


def coupled_gradient(
    part: CoupledObjective, factor: float, gathered: Gathered, update: Update, world: World
) -> tuple[float, Tensors]:
    """`factor` × the coupled loss, and its gradient with respect to the features, [R,...] by name.

    Every rank computes both over all records: cheaper than sending the gradient, and the same number everywhere.
    """
    # Integer features (labels) have no gradient.
    floating = {name: feature for name, feature in gathered.features.items() if feature.is_floating_point()}
    leaves = {name: feature.requires_grad_() for name, feature in floating.items()}
    loss = total_of(_terms(part, gathered, update, world), update.counts)
    if loss is None:
        return 0.0, {}
    return factor * float(loss.detach()), _differentiate(factor * loss, leaves, world)


def distribute(update: Update, part: CoupledObjective, gradient: Tensors, own: Tensor) -> None:
    """Set the rows of the gradient that belong to each micro-batch of this rank, for pass 2."""
    cuts = own.split([len(batch.examples) for batch in update.batches])
    by_batch = []
    for cut in cuts:
        by_batch.append({name: rows[cut] for name, rows in gradient.items()})
    update.set_feature_grads(part, by_batch)


def _features(policy: Policy, part: CoupledObjective, batch: Batch, update: Update) -> Tensors:
    # Pass 2 must see the very same features, dropout included: the gradient is of these.
    with repeatable(update, batch):
        features = part.features(policy, batch)
    for name, feature in features.items():
        if len(feature) != len(batch.examples):
            raise RunError(
                f"{type(part).__name__}.features gave `{name}` of shape {tuple(feature.shape)} for"
                f" {len(batch.examples)} records.",
                "The first axis of a feature counts the records of the batch.",
            )
    return features


def _terms(part: CoupledObjective, gathered: Gathered, update: Update, world: World) -> list[Term]:
    """The terms of the coupled loss."""
    # Its meters are collected apart: every rank computes the same ones, and their sum over ranks must count one.
    scratch = replace(update, meters={})
    terms = part.coupled_loss(gathered.features, gathered.streams, scratch)
    for name, (unit, total) in scratch.meters.items():
        update.meter(name, total if world.rank == 0 else 0.0, unit)
    return terms


def _differentiate(loss: Tensor, leaves: Tensors, world: World) -> Tensors:
    """The gradient with respect to the leaves; on rank 0 parameters within the loss get theirs too."""
    if not loss.requires_grad:
        return {}
    if world.rank == 0:
        # Gradients are summed over ranks later: those of the loss's own parameters must be added on one.
        loss.backward()
        return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {name: grad for name, grad in zip(leaves, gradients, strict=True) if grad is not None}


def joined(pieces: Sequence[Tensors]) -> Tensors:
    """Tensors of several batches concatenated by name; a rank without a batch contributes none."""
    filled = [piece for piece in pieces if piece]
    names = filled[0] if filled else ()
    return {name: torch.cat([piece[name] for piece in filled]) for name in names}


def _on_processor(tensors: Tensors) -> Tensors:
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def repeatable(update: Update, batch: Batch) -> AbstractContextManager[None]:
    """Dropout keyed by (seed, update, records), the same in both passes; draws outside are not affected."""
    return same_draws(f"{update.seed}/{update.index}/{'/'.join(batch.examples)}", batch.ids.device)


def refuse_batch_statistics(module: nn.Module, pieces: int, ranks: int) -> None:
    """Refuse a split update of a model that normalises by the statistics of one forward (batch norm).

    Raises:
        RunError: such a layer is in training mode; the message names it.
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
