"""Attention over short rows in bfloat16 on a processor, by matrix products over all positions at once.

Torch's own kernel for processors converts every tile to float32 and back: at 60 to 480 positions its forward and
backward take 2.5 to 6 times as long (AMD EPYC with AVX512-BF16), and its gradients are as far from float32's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

NAME = "short_rows"
LONGEST = 1024
"""Positions up to which all scores of a head exist at once: 2 MiB, and three times that in the backward."""
KEPT = 256
"""Positions up to which probabilities are kept for the backward; for longer rows they are computed again."""


def use_short_rows(module: Any) -> None:
    """Let a bfloat16 model of transformers on a processor use `attention`, if it would use torch's (`sdpa`)."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    weight = next(module.parameters())
    narrow = weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    if narrow and module.config._attn_implementation == "sdpa":
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
    """As transformers calls it: query [B,H,T,D], key and value [B,G,T,D], mask [B,1,T,T] → [B,T,H,D], None.

    Longer rows, decoding with a cache, dropout and score biases go to transformers' `sdpa` form.
    """
    if not _can_compute(query, key, attention_mask, dropout, more):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **more)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask = _additive(query, attention_mask, causal)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Contiguous, as torch's form returns it: some models take a view of it.
    return short_rows(query, key, value, mask, scale).transpose(1, 2).contiguous(), None


def _can_compute(query: Tensor, key: Tensor, mask: Tensor | None, dropout: float, more: dict[str, Any]) -> bool:
    """Whether a call is self-attention over short rows, in bfloat16 on a processor, without further terms."""
    length = query.shape[2]
    short = key.shape[2] == length and 1 < length <= LONGEST
    unmodified = not dropout and all(more.get(name) is None for name in ("position_bias", "cache", "softcap"))
    square = mask is None or (mask.dim() == 4 and mask.shape[1:] == (1, length, length))
    narrow = query.dtype == torch.bfloat16 and query.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return narrow and short and unmodified and square and query.shape[1] % key.shape[1] == 0


def _additive(query: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """The mask as a term of the scores, [B or 1,1,1,T,T]; None where every position sees all."""
    length = query.shape[2]
    # Not -inf: a row of padding that sees nothing would become NaN.
    lowest = torch.finfo(query.dtype).min
    if mask is not None:
        term = mask if mask.is_floating_point() else query.new_zeros(mask.shape).masked_fill_(~mask, lowest)
        return term.to(query.dtype)[:, :, None]
    return query.new_full((length, length), lowest).triu_(1)[None, None, None] if causal else None


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
        # The query heads of a group share keys: as rows of one matrix they need one product, and no repeated keys.
        flat_query = (query * scale).reshape(batch * groups, -1, query.shape[-1])
        flat_key = key.reshape(batch * groups, length, -1)
        flat_value = value.reshape(batch * groups, length, -1)
        probabilities = _probabilities(flat_query, flat_key, mask, batch)
        # T² probabilities per head are cheap to keep for short rows only.
        kept = probabilities if length <= KEPT else None
        ctx.save_for_backward(flat_query, flat_key, flat_value, mask, kept)
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape, value.shape)
        return torch.bmm(probabilities, flat_value).view(batch, heads, length, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads_out: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, mask, probabilities = ctx.saved_tensors
        query_shape, key_shape, value_shape = ctx.shapes
        if probabilities is None:
            probabilities = _probabilities(query, key, mask, query_shape[0])
        grad_out = grads_out[0].reshape(*query.shape[:2], -1)
        grad_value = torch.bmm(probabilities.transpose(1, 2), grad_out)
        grad_probabilities = torch.bmm(grad_out, value.transpose(1, 2))
        # torch's fused kernel: the formula in Python would pass over [T,T] several times per head.
        grad_scores = torch.ops.aten._softmax_backward_data(grad_probabilities, probabilities, -1, probabilities.dtype)
        # The saved query is scaled already, so only the query's own gradient needs the scale.
        grad_query = torch.bmm(grad_scores, key).mul_(ctx.scale)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query)
        return grad_query.view(query_shape), grad_key.view(key_shape), grad_value.view(value_shape), None, None


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None, batch: int) -> Tensor:
    """Softmax of the scores: query [B·G,R·T,D], key [B·G,T,D] → [B·G,R·T,T]."""
    scores = torch.bmm(query, key.transpose(1, 2))
    if mask is not None:
        length = key.shape[1]
        # A view by batch, head and position, so that one mask of a row is added to all heads without a copy.
        scores.view(batch, -1, query.shape[1] // length, length, length).add_(mask)
    return torch.softmax(scores, -1)
