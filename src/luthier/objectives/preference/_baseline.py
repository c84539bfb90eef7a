"""KTO's baseline: the mean log-ratio of the update's answers to mismatched prompts, one number per update."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.data.batches import collate, micro_batches, mismatched
from luthier.errors import RecipeError
from luthier.models.kernels.head import target_logprob
from luthier.models.policy import Reference, TokenPolicy
from luthier.types import Batch
from luthier.update import Update


def mismatch(policy: TokenPolicy, update: Update, name: str, reference: str = "initial") -> float:
    """Mean of Σ_t (log p - log q) over the update's answers, each after another record's prompt; in eval mode.

    Every rank reads the answers of its own micro-batches; the sum goes over all ranks. 0 where all answers have the
    same prompt.

    Args:
        name: the objective, for the message.
        reference: the model q.

    Raises:
        RecipeError: all answers of the first update have the same prompt; later updates would hardly differ.
    """
    others = mismatched(update.rows, f"{update.seed}/{update.index}")
    if not others:
        if update.index == 1:
            raise RecipeError(
                f"`{name}` needs answers to two different prompts, and the first update has only one prompt.",
                "Raise train.batch.records, or set `baseline: zero`.",
            )
        return 0.0
    device = next(policy.module.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    for batch in update.batches:
        # A longer prompt may make a row longer: batches are cut again, at the size that fitted in memory before.
        for piece in micro_batches(
            [others[record] for record in batch.examples], batch.ids.numel(), policy.ragged or "padded"
        ):
            other = collate(piece).to(device)
            total += _logprob(Reference(policy), other) - _logprob(policy.references[reference], other)
    update.sum_tensors([total])
    return float(total) / update.counts["answers"]


def _logprob(reader: Reference, batch: Batch) -> Tensor:
    """Σ log p of all targets of a batch."""
    targets, hidden = batch.ids[batch.targets()], reader.hidden(batch)
    if not len(targets):
        return hidden.new_zeros(())
    sums = []
    for piece in reader.policy.head.chunks(hidden):
        sums.append(target_logprob(reader.logits(hidden[piece]), targets[piece]).double().sum())
    return torch.stack(sums).sum()
