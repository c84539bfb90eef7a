"""The type in which sums and averages are kept: float32, or float64 where the numbers already are."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 or wider, for sums of numbers of this type."""
    return torch.promote_types(dtype, torch.float32)


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32 or wider, exact; integers stay as they are."""
    return tensor.to(wide_dtype(tensor.dtype)) if tensor.is_floating_point() else tensor
