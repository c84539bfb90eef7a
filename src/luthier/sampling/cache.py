"""A key-value cache that grows in place, and the state of a module during sampling."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from luthier.errors import ModelError

ROOM = 64  # positions by which a full buffer grows: the whole is copied once in so many steps, not at every step
CPU_BUDGET = 1 << 30
CPU_ROWS, GPU_ROWS = 64, 256  # 64 rows decode 1.2 times the tokens per second of 32, 96 hardly more


class GrowingLayer(DynamicLayer):
    """Keys and values [B, heads, T, D] as views into buffers with room to the right.

    `DynamicLayer` concatenates, so each new token copies everything before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append the states of new positions; returns all keys and all values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.buffers is None or end > self.buffers[0].shape[-2]:
            self.buffers = (
                _widened(key_states, self.keys, start, end + ROOM),
                _widened(value_states, self.values, start, end + ROOM),
            )
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep the rows `beam_idx`, in that order; a row may be asked for more than once."""
        super().reorder_cache(beam_idx)
        self.buffers = None


def _widened(states: Tensor, old: Tensor | None, used: int, capacity: int) -> Tensor:
    rows, heads, _, width = states.shape
    buffer = states.new_empty((rows, heads, capacity, width))
    if used and old is not None:
        buffer[:, :, :used] = old
    return buffer


def open_cache(module: Any) -> DynamicCache:
    """An empty cache that fits the layers of `module`; plain attention layers grow in place."""
    cache = DynamicCache(config=module.config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if not cache.layers:
        cache.layer_class_to_replicate = GrowingLayer
    return cache


def keep_rows(cache: DynamicCache, rows: Any) -> None:
    """Reduce or repeat the rows of every layer. `rows`: int64 indices of rows now in the cache."""
    cache.reorder_cache(rows)


class Forward:
    """Calls a causal LM with a cache, passing only what its forward knows.

    Args:
        module: any causal LM of transformers, also wrapped by PEFT.

    Raises:
        ModelError: the model keeps no key-value cache that rows can leave.
    """

    def __init__(self, module: Any):
        inner = module.get_base_model() if hasattr(module, "get_base_model") else module
        known = inspect.signature(inner.forward).parameters
        if "past_key_values" not in known:
            raise ModelError(
                f"{type(inner).__name__} has no key-value cache; Luthier cannot generate with it.",
                "Use a causal language model whose forward takes `past_key_values`.",
            )
        self.module = module
        self.positions = "position_ids" in known
        self.last_only = "logits_to_keep" in known
        self.device = inner.get_input_embeddings().weight.device
        text = module.config.get_text_config(decoder=True)
        self.context: int = getattr(text, "max_position_embeddings", None) or 1 << 30

    def __call__(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, last: bool) -> Tensor:
        """Logits of new tokens, [B,1,V] if `last` else [B,T,V].

        Args:
            ids: new tokens [B,T].
            mask: 1 for real tokens, [B, cached + T].
            positions: of the new tokens in their records, [B,T].
            cache: what was seen before; grows by T.
            last: only the logits of the last position.
        """
        extra: dict[str, Any] = {}
        if self.positions:
            extra["position_ids"] = positions.clamp(max=self.context - 1)
        if last and self.last_only:
            extra["logits_to_keep"] = 1
        out = self.module(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        return out.logits[:, -1:] if last else out.logits


def prefill(forward: Forward, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, DynamicCache]:
    """Run prompts up to their last token; what all of them begin with is run once.

    Args:
        forward: the model.
        prompts: token ids of each, none empty.

    Returns:
        The last logits [B,V], the mask [B,T] of what is cached, and the cache.
    """
    cache = open_cache(forward.module)
    shared = _common_prefix(prompts) if forward.positions and _plain(cache) else 0
    rows = len(prompts)
    if shared:
        start = torch.tensor([prompts[0][:shared]], device=forward.device)
        places = torch.arange(shared, device=forward.device)[None]
        forward(start, torch.ones_like(start), places, cache, last=True)
        keep_rows(cache, torch.zeros(rows, dtype=torch.long, device=forward.device))
    rest = [list(prompt[shared:]) for prompt in prompts]
    width = max(map(len, rest))
    ids = torch.tensor([[0] * (width - len(one)) + one for one in rest], device=forward.device)
    lengths = torch.tensor([len(one) for one in rest], device=forward.device)
    own = (torch.arange(width, device=forward.device) >= (width - lengths)[:, None]).long()
    mask = torch.cat([own.new_ones((rows, shared)), own], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
    return forward(ids, mask, positions, cache, last=True)[:, 0], mask, cache


def _common_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Length of what all prompts begin with, leaving each a token of its own; 0 where it saves nothing."""
    if len(prompts) < 2:
        return 0
    texts = [list(prompt) for prompt in prompts]
    low, high = min(texts), max(texts)  # what the extremes of the order share, all share
    length = min(map(len, texts)) - 1
    return next((place for place in range(length) if low[place] != high[place]), length)


def _plain(cache: DynamicCache) -> bool:
    """Whether padding may lie between cached tokens: windows and recurrent states count cached places."""
    return all(type(layer) is GrowingLayer for layer in cache.layers)


@contextmanager
def sampling_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every submodule returns to the mode that it was in."""
    training = [piece for piece in module.modules() if piece.training]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for piece in training:
            piece.training = True


def rows_that_fit(module: Any, length: int) -> int:
    """How many rows of `length` positions to run together: their cache keeps to a budget of bytes.

    The budget is 1 GiB on a CPU and a quarter of the free memory on a GPU.
    """
    config = module.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    weight = next(module.parameters())
    per_position = 2 * config.num_hidden_layers * heads * width * weight.element_size()
    on_gpu = weight.device.type == "cuda"
    budget = torch.cuda.mem_get_info(weight.device)[0] // 4 if on_gpu else CPU_BUDGET
    return max(1, min(GPU_ROWS if on_gpu else CPU_ROWS, budget // (per_position * max(1, length))))
