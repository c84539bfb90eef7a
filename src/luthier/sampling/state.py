"""A model that continues texts, the way in which it reads them, and what a cache holds of one text."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from luthier.errors import ModelError
from luthier.models.config import context_of


@dataclass(frozen=True)
class Way:
    """How a model reads texts. What is False is not used; `check` (check.py) says what a model can do.

    Attributes:
        cached: keys, values or states of what was read are kept; otherwise every step reads whole texts again.
        prefix: texts of unequal length continue one prefix in one pass.
        ragged: texts of unequal length share a pass, padded on the left.
        several: several tokens at once continue a text that was read before; otherwise one token at a time.
        positions: positions are passed to the model; otherwise the model counts them itself.
        together: several texts share a pass; otherwise each is read alone.
    """

    cached: bool = True
    prefix: bool = True
    ragged: bool = True
    several: bool = True
    positions: bool = True
    together: bool = True


WAYS = (
    Way(),
    Way(prefix=False),
    Way(prefix=False, ragged=False),
    Way(prefix=False, several=False),
    Way(prefix=False, ragged=False, positions=False),
    Way(prefix=False, ragged=False, several=False),
    Way(prefix=False, ragged=False, several=False, positions=False),
    Way(cached=False, prefix=False),
    Way(cached=False, prefix=False, together=False),
)
"""From the fastest to the most general. The last is the model's plain forward, to which the others are compared."""


class Forward:
    """Calls a causal LM with a cache, and passes only the arguments that its forward has.

    Attributes:
        way: how the model is called; `check` sets it.
        context: positions the model can take; 2^30 where its configuration has no bound.
        cached: whether the forward takes a key-value cache.
        positions: whether the forward takes `position_ids`.
        last_only: whether the forward can compute the logits of chosen positions alone.

    Args:
        module: any causal LM of transformers, also wrapped by PEFT.

    Raises:
        ModelError: the module is no language model.
    """

    def __init__(self, module: Any):
        # The signature has to be the model's: a PEFT wrapper's forward takes anything.
        inner, virtual = module, _virtual_tokens(module)
        while hasattr(inner, "get_base_model"):  # an adapter on a model with an adapter is two wrappers
            inner = inner.get_base_model()
            virtual += _virtual_tokens(inner)
        if not hasattr(inner, "get_input_embeddings") or not hasattr(inner, "config"):
            raise ModelError(
                f"{type(inner).__name__} is no causal language model of transformers; Luthier cannot generate with it.",
                "Use a model that AutoModelForCausalLM loads.",
            )
        self.parameters = inspect.signature(inner.forward).parameters
        # PEFT writes such tokens into a cache of its own, at every call.
        self.cached = "past_key_values" in self.parameters and not virtual
        self.module, self.inner, self.way = module, inner, Way()
        self.positions = "position_ids" in self.parameters
        self.last_only = "logits_to_keep" in self.parameters and not virtual
        embeddings = inner.get_input_embeddings().weight
        self.device, self.dtype, self.vocabulary = embeddings.device, embeddings.dtype, len(embeddings)
        self.context: int = (context_of(inner) or 1 << 30) - virtual

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
        if self.positions and self.way.positions:
            # Scored choices are padded on the right, and their padding may lie beyond the context.
            extra["position_ids"] = positions.clamp(max=self.context - 1)
        if last and self.last_only:
            extra["logits_to_keep"] = 1
        mask = None if mask is None else mask.long()
        logits = self.module(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra).logits
        # Models without `logits_to_keep` compute all positions.
        return logits[:, -1:] if last else logits

    def plain(self, ids: Tensor, positions: Sequence[int]) -> Tensor:
        """Logits [B,P,V] at `positions` (ascending) of whole texts [B,T], which the model reads without a cache.

        Mask and positions are left to the model, so these logits say what is right.
        """
        index = torch.tensor(positions, device=ids.device)
        extra: dict[str, Any] = {"logits_to_keep": index} if self.last_only else {}
        if "use_cache" in self.parameters:
            extra["use_cache"] = False
        logits = self.module(input_ids=ids, **extra).logits
        # Virtual tokens before the text have logits too.
        return logits if self.last_only else logits[:, -ids.shape[1] :][:, index]


def _virtual_tokens(module: Any) -> int:
    """The number of tokens that this wrapper of PEFT puts before every text."""
    configs = getattr(module, "peft_config", {}).values()
    return sum(config.num_virtual_tokens for config in configs if config.is_prompt_learning)


Layers = tuple[tuple[Tensor, Tensor] | None, ...]


@dataclass(frozen=True)
class State:
    """What a cache holds of one row, independent of the other rows.

    Attributes:
        length: positions of the row.
        layers: keys and values [H,T,D] of each layer; None where a layer keeps none.
        fixed: a cache whose rows cannot be copied out, and the row's index in it; `layers` is empty then.
        ids: the row's tokens, where they are read again at every step.
    """

    length: int
    layers: Layers = ()
    fixed: tuple[FixedRowsCache, int] | None = None
    ids: tuple[int, ...] = ()


class Cache(Protocol):
    """The methods of every cache. `can_add`: rows can be added while others run, and a state more than once."""

    can_add: bool

    @property
    def rows(self) -> int: ...
    def start_empty(self, rows: int) -> None: ...
    def run(self, ids: Tensor, valid: Tensor | None = None, last: bool = True) -> Tensor: ...
    def advance(self, ids: Tensor) -> Tensor: ...
    def add(self, states: Sequence[State]) -> None: ...
    def remove(self, removed: set[int]) -> list[int]: ...
    def state(self, row: int) -> State: ...


def by_token(cache: Cache, ids: Tensor, valid: Tensor | None, last: bool) -> Tensor:
    """`cache.run(ids, valid, last)`, one token of every row at a time."""
    logits = []
    for column in range(ids.shape[1]):
        piece = slice(column, column + 1)
        logits.append(cache.run(ids[:, piece], None if valid is None else valid[:, piece]))
    return logits[-1] if last else torch.cat(logits, 1)


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
        if self.valid.shape[1] and ids.shape[1] > 1 and not self.forward.way.several:
            return by_token(self, ids, valid, last)
        before = self.valid.sum(-1, keepdim=True)
        valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
        self.valid = torch.cat([self.valid, valid], dim=1)
        positions = before + (valid.cumsum(-1) - 1).clamp(min=0)
        return self.forward(ids, self.valid if self.forward.way.ragged else None, positions, self.cache, last)

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


def by_length(lengths: Iterable[int], together: bool = True) -> list[list[int]]:
    """The indices of equal lengths, as one list each; with `together` False every index in a list of its own."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, length in enumerate(lengths):
        groups.setdefault((length, 0 if together else index), []).append(index)
    return list(groups.values())
