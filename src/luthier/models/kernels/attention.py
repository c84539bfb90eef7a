"""Attention over short rows in bfloat16 on a processor, as products of whole matrices.

Torch's own kernel for processors converts every tile to float32 and back: at 60 to 480 positions its forward and
backward take 2.5 to 6 times as long as these (AMD EPYC with AVX512-BF16), with gradients as far from those in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NAME = "short_rows"
LONGEST = 1024
"""Positions up to which a head's scores exist at once: 2 MiB, and three times that in the backward."""
KEPT = 256
"""Positions up to which probabilities are kept for the backward; of longer rows they are made again."""


def use_short_rows(module: Any) -> None:
    """Let a model of transformers in bfloat16 on a processor, whose attention is torch's own, compute it as below."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    first = next(module.parameters())
    suits = first.dtype == torch.bfloat16 and first.device.type == "cpu"
    if suits and module.config._attn_implementation == "sdpa":
        AttentionInterface.register(NAME, attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        module.set_attn_implementation(NAME)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: query [B,H,T,D], key and value [B,G,T,D], mask [B,1,T,T] → [B,T,H,D], None."""
    if not _suits(query, key, attention_mask, dropout, more):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **more)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask = _additive(query, attention_mask, causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return short_rows(query, key, value, mask, scale).transpose(1, 2), None


def _suits(query: Tensor, key: Tensor, mask: Tensor | None, dropout: float, more: dict[str, Any]) -> bool:
    length = query.shape[2]
    whole = key.shape[2] == length and 1 < length <= LONGEST
    plain = not dropout and all(more.get(name) is None for name in ("position_bias", "cache", "softcap"))
    square = mask is None or (mask.dim() == 4 and mask.shape[1:] == (1, length, length))
    narrow = query.dtype == torch.bfloat16 and query.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return narrow and whole and plain and square and query.shape[1] % key.shape[1] == 0


def _additive(query: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """What is added to the scores, [B or 1,1,1,T,T]; None to see everything. The least number, not -inf: no NaN."""
    length, least = query.shape[2], torch.finfo(query.dtype).min
    if mask is not None:
        added = mask if mask.is_floating_point() else query.new_zeros(mask.shape).masked_fill_(~mask, least)
        return added.to(query.dtype)[:, :, None]
    return query.new_full((length, length), least).triu_(1)[None, None, None] if causal else None


def short_rows(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(scale · query key^T + mask) value: [B,H,T,D].

    Args:
        query: [B,H,T,D].
        key: [B,G,T,D], as `value`; H is a multiple of G.
        mask: [B or 1,1,1,T,T], without a gradient of its own.
    """
    return _ShortRows.apply(query, key, value, mask, scale)


class _ShortRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        batch, heads, length, _ = query.shape
        groups = key.shape[1]
        # The heads of a group see the same keys: their positions are rows of one matrix.
        flat_query = (query * scale).reshape(batch * groups, -1, query.shape[-1])
        flat_key, flat_value = (one.reshape(batch * groups, length, -1) for one in (key, value))
        seen = _probabilities(flat_query, flat_key, mask, batch)
        ctx.save_for_backward(flat_query, flat_key, flat_value, mask, seen if length <= KEPT else None)
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape, value.shape)
        return torch.bmm(seen, flat_value).view(batch, heads, length, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, mask, seen = ctx.saved_tensors
        if seen is None:
            seen = _probabilities(query, key, mask, ctx.shapes[0][0])
        slope = outer[0].reshape(*query.shape[:2], -1)
        to_value = torch.bmm(seen.transpose(1, 2), slope)
        to_seen = torch.bmm(slope, value.transpose(1, 2))
        to_scores = torch.ops.aten._softmax_backward_data(to_seen, seen, -1, seen.dtype)
        to_query = torch.bmm(to_scores, key).mul_(ctx.scale)
        to_key = torch.bmm(to_scores.transpose(1, 2), query)
        found = (one.view(shape) for one, shape in zip((to_query, to_key, to_value), ctx.shapes, strict=True))
        return *found, None, None


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    """Softmax of the scores: query [B·G,R·T,D], key [B·G,T,D] → [B·G,R·T,T]."""
    scores = torch.bmm(query, key.transpose(1, 2))
    if mask is not None:
        length = key.shape[1]
        scores.view(batch, -1, query.shape[1] // length, length, length).add_(mask)
    return torch.softmax(scores, -1)
