"""A model that continues texts, and what it has cached of one of them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from luthier.errors import ModelError
from luthier.models.config import text_config


class Forward:
    """Calls a causal LM with a cache, passing only what its forward knows.

    Args:
        module: any causal LM of transformers, also wrapped by PEFT.

    Raises:
        ModelError: the model keeps no key-value cache, or its adapter puts virtual tokens before every call.
    """

    def __init__(self, module: Any):
        inner = module.get_base_model() if hasattr(module, "get_base_model") else module
        known = inspect.signature(inner.forward).parameters
        if "past_key_values" not in known:
            raise ModelError(
                f"{type(inner).__name__} has no key-value cache; Luthier cannot generate with it.",
                "Use a causal language model whose forward takes `past_key_values`.",
            )
        if any(config.is_prompt_learning for config in getattr(module, "peft_config", {}).values()):
            raise ModelError(
                "Adapters of virtual tokens (prompt, prefix and p-tuning) cannot be sampled from yet.",
                "Use an adapter that changes weights, such as `lora`.",
            )
        self.module, self.inner = module, inner
        self.positions = "position_ids" in known
        self.last_only = "logits_to_keep" in known
        embeddings = inner.get_input_embeddings().weight
        self.device, self.dtype = embeddings.device, embeddings.dtype
        text = text_config(module)
        self.context: int = getattr(text, "max_position_embeddings", None) or 1 << 30

    def __call__(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: DynamicCache, last: bool) -> Tensor:
        """Logits of new tokens, [B,1,V] if `last` else [B,T,V].

        Args:
            ids: new tokens [B,T].
            mask: True for real tokens, [B, cached + T]; None: all are.
            positions: of the new tokens in their records, [B,T].
            cache: what was seen before; the model puts the new tokens into it.
            last: only the logits of the last position.
        """
        extra: dict[str, Any] = {}
        if self.positions:
            extra["position_ids"] = positions.clamp(max=self.context - 1)
        if last and self.last_only:
            extra["logits_to_keep"] = 1
        mask = None if mask is None else mask.long()
        out = self.module(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra)
        return out.logits[:, -1:] if last else out.logits


Layers = tuple[tuple[Tensor, Tensor] | None, ...]


@dataclass(frozen=True)
class State:
    """What one row has cached, and nothing of its neighbours.

    `layers`: keys and values [H,T,D] of each layer, None where a layer keeps none. A cache that is no plain
    list of positions stays whole: `whole` is that cache and the row in it.
    """

    length: int
    layers: Layers = ()
    whole: tuple[WholeCache, int] | None = None


class WholeCache:
    """Rows of a cache that is no list of positions (windows by place, recurrent states): all enter together."""

    plain = False

    def __init__(self, forward: Forward):
        self.forward = forward
        self.rows = 0
        self.cache = DynamicCache(config=forward.module.config)
        self.seen = torch.ones((0, 0), dtype=torch.bool, device=forward.device)

    def blank(self, rows: int) -> None:
        """Take in rows without a position."""
        self.rows = rows
        self.seen = self.seen.new_ones((rows, 0))

    def run(self, ids: Tensor, valid: Tensor | None = None, last: bool = True) -> Tensor:
        """As Slots.run."""
        before = self.seen.sum(-1, keepdim=True)
        valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
        self.seen = torch.cat([self.seen, valid], dim=1)
        positions = before + (valid.cumsum(-1) - 1).clamp(min=0)
        return self.forward(ids, self.seen, positions, self.cache, last)

    def advance(self, ids: Tensor) -> Tensor:
        """As Slots.advance."""
        return self.run(ids[:, None])[:, 0]

    def enter(self, states: Sequence[State]) -> None:
        """Take over the cache of `states`, which is used up."""
        found = [state.whole for state in states if state.whole]
        source = found[0][0]
        self.cache, self.seen = source.cache, source.seen
        self._keep([row for _, row in found])

    def save_assets(self, gone: set[int]) -> list[int]:
        """As Slots.leave."""
        order = [row for row in range(self.rows) if row not in gone]
        if order:
            self._keep(order)
        self.rows = len(order)
        return order

    def state(self, row: int) -> State:
        """The row where it stands."""
        return State(int(self.seen[row].sum()), whole=(self, row))

    def _keep(self, rows: list[int]) -> None:
        index = torch.tensor(rows, device=self.forward.device)
        self.cache.reorder_cache(index)  # pyright: ignore[reportArgumentType]
        self.seen, self.rows = self.seen[index], len(rows)
