"""The value head of ppo: a linear function of the hidden state that the output head reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """Hidden states [n,D] → values [n], in fp32 or wider; 0 everywhere before training.

    Args:
        width: D.
        like: a tensor of the model; the head takes its device and its dtype, widened to fp32.
    """

    def __init__(self, width: int, like: Tensor):
        super().__init__()
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.weight = nn.Parameter(torch.zeros(width, dtype=dtype, device=like.device))
        self.bias = nn.Parameter(torch.zeros((), dtype=dtype, device=like.device))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.to(self.weight.dtype) @ self.weight + self.bias
