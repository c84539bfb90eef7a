"""The first of two passes, for losses in which the records of an update meet.

Pass 1 computes the features of every micro-batch without gradient, gathers them over ranks, and takes the loss
and its gradient with respect to the features, once. Pass 2 is the ordinary backward of each micro-batch: it
computes the features again, with the same dropout, and carries that gradient on. This is the chain rule, exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from luthier.engine.distributed import World
from luthier.errors import RunError
from luthier.models.context import same_draws
from luthier.models.policy import Policy
from luthier.objectives.base import CoupledObjective, Objective, total_of
from luthier.objectives.sum import weighted_members
from luthier.types import Batch, Term
from luthier.update import Update

Tensors = dict[str, Tensor]


def couple(policy: Policy, objective: Objective, update: Update, world: World) -> float:
    """Carry out pass 1 for every coupled member of the objective: leaves `update.feature_grads`, returns their loss.

    The loss is the same number on every rank. Parameters that a loss reads itself get their gradient here, on
    rank 0. An update that is one batch on one rank is differentiated directly, without a second pass.

    Raises:
        RunError: features that are not one per record.
    """
    update.repeatable = partial(repeatable, update)
    members = [(part, factor) for part, factor in weighted_members(objective) if isinstance(part, CoupledObjective)]
    return sum(_couple(policy, objective, part, factor, update, world) for part, factor in members)


def _couple(
    policy: Policy, objective: Objective, part: CoupledObjective, factor: float, update: Update, world: World
) -> float:
    whole = len(update.batches) == 1 and world.size == 1
    with ExitStack() as stack:
        if whole:  # its graph is still needed when the loss is known
            stack.enter_context(objective.micro_batch_context(policy, update.batches[0], update))
            found = [_features(policy, part, batch, update) for batch in update.batches]
        else:
            found = [_look(policy, objective, part, batch, update) for batch in update.batches]
        rows = [{name: s.values for name, s in b.streams.items() if s.axis == "row"} for b in update.batches]
        records = [record for batch in update.batches for record in batch.examples]
        own = (records, joined(found), joined(rows))
        everyone = [own] if whole else world.gather((records, _home(own[1]), _home(own[2])))
        device = next(policy.module.parameters()).device
        order = _order([record for theirs, _, _ in everyone for record in theirs])
        features = {n: _wide(v.to(device)[order]) for n, v in joined([f for _, f, _ in everyone]).items()}
        streams = {n: v.to(device)[order] for n, v in joined([s for _, _, s in everyone]).items()}
        leaves = {} if whole else {n: v.requires_grad_() for n, v in features.items() if v.is_floating_point()}
        loss = total_of(_terms(part, features, streams, update, world), update.counts)
        feature_grads = {} if loss is None else _differentiate(factor * loss, leaves, world)
    first = sum(len(theirs) for theirs, _, _ in everyone[: world.rank])
    _distribute(update, part, feature_grads, order.argsort()[first : first + len(records)])
    return 0.0 if loss is None else factor * float(loss.detach())


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


def _terms(part: CoupledObjective, features: Tensors, streams: Tensors, update: Update, world: World) -> list[Term]:
    """The coupled loss; all ranks compute the same, so its meters count on one."""
    aside = replace(update, meters={})
    terms = part.coupled_loss(features, streams, aside)
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


def _distribute(update: Update, part: CoupledObjective, feature_grads: Tensors, places: Tensor) -> None:
    """Each micro-batch of this rank its rows of the gradient."""
    cuts = places.split([len(batch.examples) for batch in update.batches])
    update.set_feature_grads(part, [{name: grad[cut] for name, grad in feature_grads.items()} for cut in cuts])


def joined(pieces: Sequence[Tensors]) -> Tensors:
    """Tensors of several batches one after the other, by name; a rank without a batch brings none."""
    full = [piece for piece in pieces if piece]
    return {name: torch.cat([piece[name] for piece in full]) for name in full[0]} if full else {}


def _home(tensors: Tensors) -> Tensors:
    return {name: values.cpu() for name, values in tensors.items()}


def _wide(values: Tensor) -> Tensor:
    """At least float32: half-precision features are compared exactly as they are, in a wider type."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


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
