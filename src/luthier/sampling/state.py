"""A model that continues texts, and what the cache holds of one text."""

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
    """Calls a causal LM with a cache, and passes only the arguments that its forward has.

    Attributes:
        context: positions the model can take; 2^30 where its configuration has no bound.
        positions: whether the forward takes `position_ids`.
        last_only: whether the forward can compute the logits of the last position alone.

    Args:
        module: any causal LM of transformers, also wrapped by PEFT.

    Raises:
        ModelError: the model keeps no key-value cache, or its adapter puts virtual tokens before every call.
    """

    def __init__(self, module: Any):
        # The signature has to be the model's: a PEFT wrapper's forward takes anything.
        inner = module.get_base_model() if hasattr(module, "get_base_model") else module
        parameters = inspect.signature(inner.forward).parameters
        if "past_key_values" not in parameters:
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
        self.positions = "position_ids" in parameters
        self.last_only = "logits_to_keep" in parameters
        embeddings = inner.get_input_embeddings().weight
        self.device, self.dtype = embeddings.device, embeddings.dtype
        text = text_config(module)
        self.context: int = getattr(text, "max_position_embeddings", None) or 1 << 30

    def __call__(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: DynamicCache, last: bool) -> Tensor:
        """Logits of new tokens, [B,1,V] if `last` else [B,T,V].

        Args:
            ids: new tokens [B,T].
            mask: True for real tokens, [B, cached + T]; None: all are.
            positions: of the new tokens in their texts, [B,T].
            cache: keys and values of the tokens before; the model appends those of the new tokens.
            last: compute the logits of the last position only.
        """
        extra: dict[str, Any] = {}
        if self.positions:
            # Scored choices are padded on the right, and their padding may lie beyond the context.
            extra["position_ids"] = positions.clamp(max=self.context - 1)
        if last and self.last_only:
            extra["logits_to_keep"] = 1
        mask = None if mask is None else mask.long()
        logits = self.module(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra).logits
        # Models without `logits_to_keep` compute all positions.
        return logits[:, -1:] if last else logits


Layers = tuple[tuple[Tensor, Tensor] | None, ...]


@dataclass(frozen=True)
class State:
    """What the cache holds of one row, independent of the other rows.

    Attributes:
        length: positions of the row.
        layers: keys and values [H,T,D] of each layer; None where a layer keeps none.
        fixed: a cache whose rows cannot be copied out, and the row's index in it; `layers` is empty then.
    """

    length: int
    layers: Layers = ()
    fixed: tuple[FixedRowsCache, int] | None = None


class FixedRowsCache:
    """A cache whose layers do not keep one state per position (recurrent layers, chunked attention).

    All its rows start together: there are no columns in which a later row could be aligned with them. The methods
    are those of `Slots`.
    """

    can_add = False

    def __init__(self, forward: Forward):
        self.forward = forward
        self.rows = 0
        self.cache = DynamicCache(config=forward.module.config)
        self.valid = torch.ones((0, 0), dtype=torch.bool, device=forward.device)

    def start_empty(self, rows: int) -> None:
        """Start `rows` rows that have no tokens yet."""
        self.rows = rows
        self.valid = self.valid.new_ones((rows, 0))

    def run(self, ids: Tensor, valid: Tensor | None = None, last: bool = True) -> Tensor:
        """Append tokens [rows,T]; returns logits [rows,1,V] if `last`, else [rows,T,V], as `Slots.run`."""
        before = self.valid.sum(-1, keepdim=True)
        valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
        self.valid = torch.cat([self.valid, valid], dim=1)
        positions = before + (valid.cumsum(-1) - 1).clamp(min=0)
        return self.forward(ids, self.valid, positions, self.cache, last)

    def advance(self, ids: Tensor) -> Tensor:
        """Append one token [rows] to every row; returns logits [rows,V]."""
        return self.run(ids[:, None])[:, 0]

    def add(self, states: Sequence[State]) -> None:
        """Continue `states`, all of one cache. That cache moves here; its states cannot be added a second time."""
        members = [state.fixed for state in states if state.fixed]
        source = members[0][0]
        self.cache, self.valid = source.cache, source.valid
        self._select([row for _, row in members])

    def remove(self, removed: set[int]) -> list[int]:
        """Remove rows; returns the old index of each remaining row."""
        order = [row for row in range(self.rows) if row not in removed]
        if order:  # where no row remains, the next `add` replaces the cache
            self._select(order)
        self.rows = len(order)
        return order

    def state(self, row: int) -> State:
        """A reference to the row: nothing is copied."""
        return State(int(self.valid[row].sum()), fixed=(self, row))

    def _select(self, rows: list[int]) -> None:
        """Keep these rows in this order; a row may repeat."""
        index = torch.tensor(rows, device=self.forward.device)
        self.cache.reorder_cache(index)  # pyright: ignore[reportArgumentType]
        self.valid, self.rows = self.valid[index], len(rows)
