"""Statistics of a batch that selectors share: the loss of each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.models.kernels.head import target_logprob

if TYPE_CHECKING:
    from luthier.types import Batch


def loss_by_row(policy: Any, batch: Batch) -> Tensor:
    """Mean cross-entropy of each row's targets, [R] float64; 0 for a row without a target."""
    rows, columns = batch.targets()
    targets = batch.ids[rows, columns]
    logprob = policy.head.map(policy.hidden(batch), lambda piece, logits: target_logprob(logits, targets[piece]))
    return mean_by_row(-logprob, batch)


def mean_by_row(values: Tensor, batch: Batch) -> Tensor:
    """Mean of values [N] at the targets over each row, [R] float64; 0 for a row without a target."""
    owner = batch.example_of[batch.targets()]
    # float64, so that the order of positions, which layouts and devices change, does not change which score is highest.
    total = torch.zeros(len(batch.examples), dtype=torch.float64, device=values.device)
    return total.index_add(0, owner, values.double()) / owner.bincount(minlength=len(batch.examples)).clamp(min=1)
