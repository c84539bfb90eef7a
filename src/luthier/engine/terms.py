"""What a list of terms amounts to: every sum divided by its global count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from luthier.types import Term


def total_of(terms: Sequence[Term], counts: Mapping[str, float]) -> Tensor | None:
    """Σ coefficient × total / count; a unit whose global count is 0 contributes nothing."""
    pieces = [
        term.coefficient * term.total / (1.0 if term.unit is None else counts[term.unit])
        for term in terms
        if term.unit is None or counts[term.unit]
    ]
    return torch.stack([piece.reshape(()) for piece in pieces]).sum() if pieces else None
