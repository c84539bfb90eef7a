"""A key-value cache for many continuations: rows are added, grow together, are removed and copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from luthier.models.config import text_config
from luthier.sampling._shared_prefixes import SharedPrefixes
from luthier.sampling.general import EqualLengths, Rereading
from luthier.sampling.state import Cache, FixedRowsCache, Forward, Layers, State, by_length, by_token

SPARE_COLUMNS = 16  # free columns of a grown buffer, or half its width: answers are often short, and zeros take time
CPU_CACHE_BYTES = 1 << 30
CPU_ROWS, GPU_ROWS = 64, 256  # 64 rows decode 1.2 times the tokens per second of 32, 96 hardly more


class _Layer(DynamicLayer):
    """Keys and values [rows,H,columns,D] of one layer; attention reads the rows and columns in use."""

    def __init__(self, slots: Slots):
        super().__init__()
        self.slots = slots
        self.buffers: tuple[Tensor, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values [rows,H,T,D] of new positions; returns views [rows,H,window,D] of all of them."""
        slots, end = self.slots, self.slots.end + key_states.shape[-2]
        buffers = self.allocate(key_states, value_states)
        for buffer, states in zip(buffers, (key_states, value_states), strict=True):
            buffer[: slots.rows, :, slots.end : end] = states
        keys, values = (buffer[: slots.rows, :, slots.start : end] for buffer in buffers)
        return keys, values

    def allocate(self, *states: Tensor) -> tuple[Tensor, ...]:
        """The buffers for keys and values; the first states [...,H,T,D] decide H, D, type and device."""
        if not self.buffers:
            self.is_initialized, self.dtype, self.device = True, states[0].dtype, states[0].device
            rows, columns = self.slots.capacity
            self.buffers = tuple(like.new_zeros((rows, like.shape[-3], columns, like.shape[-1])) for like in states)
        return self.buffers

    def get_seq_length(self) -> int:
        """Columns of the window. Transformers asks for them before `update` has written the new ones."""
        return self.slots.end - self.slots.start


class Slots:
    """A key-value cache whose rows all end in the same column, so that rows can be added or removed at any step.

    A step writes one column for all rows, whatever their lengths. Row r occupies the columns `firsts[r]` to `end`,
    and its next position is `next[r]`. Attention reads the columns `start` to `end` (the window); `valid`
    [rows,columns] is False where a row has no token. Buffers are allocated once and grow rarely.

    With `prefixes`, the positions before a row was added are stored there, once for all rows that share them. Only
    our own `Decoder` reads `prefixes`; the model's forward does not.

    Args:
        forward: the model.
        rows: rows to allocate.
        columns: columns to allocate.
    """

    can_add = True

    def __init__(self, forward: Forward, rows: int, columns: int = SPARE_COLUMNS):
        self.forward = forward
        self.rows = self.start = self.end = 0
        self.capacity = (rows, columns)
        self.firsts: list[int] = []
        self.padded = False
        # Columns that are not written yet count as valid: neither this mask nor `bias` changes when a step writes one.
        self.valid = torch.ones(self.capacity, dtype=torch.bool, device=forward.device)
        self.next = torch.zeros(rows, dtype=torch.long, device=forward.device)
        self.cache = DynamicCache(config=forward.module.config)
        self.decoder: Callable[[Tensor, Slots, Tensor | None], Tensor] | None = None  # ids, slots, bias → logits
        self.prefixes: SharedPrefixes | None = None
        self.bias: Tensor | None = None
        self.layers = [_Layer(self) for _ in self.cache.layers]
        self.cache.layers = [*self.layers]  # pyright: ignore[reportAttributeAccessIssue]

    def start_empty(self, rows: int) -> None:
        """Start `rows` rows that have no tokens yet."""
        self._reserve(rows, 0, 1)
        self.rows = rows
        self.firsts = [0] * rows
        self.next[:rows] = 0

    def run(self, ids: Tensor, valid: Tensor | None = None, last: bool = True) -> Tensor:
        """Append tokens to all rows by the model's own forward.

        Args:
            ids: [rows,T].
            valid: [rows,T], False for padding; None: there is none.
            last: compute the logits of the last position only.

        Returns:
            Logits [rows,1,V] if `last`, else [rows,T,V].
        """
        width = ids.shape[1]
        if self.end > self.start and width > 1 and not self.forward.way.several:
            return by_token(self, ids, valid, last)
        self._reserve(self.rows, 0, width)
        columns, rows = slice(self.end, self.end + width), slice(self.rows)
        if valid is None:
            positions = self.next[rows, None] + torch.arange(width, device=ids.device)
            counts = width
        else:
            self.valid[rows, columns] = valid
            self.padded = True
            # Padding on the left would get position -1, which no embedding has; the mask hides it anyway.
            positions = self.next[rows, None] + (valid.cumsum(-1) - 1).clamp(min=0)
            counts = valid.sum(-1)
        mask = self.valid[rows, self.start : columns.stop] if self.padded else None
        logits = self.forward(ids, mask, positions, self.cache, last)
        self.end += width
        self.next[rows] += counts
        return logits

    def advance(self, ids: Tensor) -> Tensor:
        """Append one token [rows] to every row; returns logits [rows,V]."""
        if self.decoder is None:
            return self.run(ids[:, None])[:, 0]
        self._reserve(self.rows, 0, 1)
        if self.padded and self.bias is None:
            # Over the full capacity, so that one bias serves every step until rows or buffers change.
            self.bias = torch.zeros(
                (self.capacity[0], 1, self.capacity[1]), dtype=self.forward.dtype, device=ids.device
            )
            self.bias.masked_fill_(~self.valid[:, None], float("-inf"))
        logits = self.decoder(ids, self, self.bias if self.padded else None)
        self.end += 1
        self.next[: self.rows] += 1
        return logits

    def add(self, states: Sequence[State]) -> None:
        """Append one row for each of `states`, which the row continues; neighbours of one state are copied at once."""
        longest = 0 if self.prefixes else max(state.length for state in states)
        self._reserve(self.rows + len(states), longest, 1)
        if self.prefixes:
            self.prefixes.add(states)
        for state, count in _runs(states):
            rows = slice(self.rows, self.rows + count)
            first = self.end if self.prefixes else self.end - state.length
            if not self.prefixes:
                self._copy_in(rows, first, state)
            # A removed row may have left its mask here.
            self.valid[rows, :first] = False
            self.valid[rows, first:] = True
            self.next[rows] = state.length
            self.firsts += [first] * count
            self.rows += count
        self._fit_window()

    def _copy_in(self, rows: slice, first: int, state: State) -> None:
        """Copy a state's keys and values [H,T,D] into the columns `first` to `end` of `rows`."""
        for layer, stored in zip(self.layers, state.layers, strict=True):
            if stored is None:
                continue
            for buffer, states in zip(layer.allocate(*stored), stored, strict=True):
                buffer[rows, :, first : self.end] = states

    def remove(self, removed: set[int]) -> list[int]:
        """Remove rows; rows at the end fill the gaps. Returns the old index of each remaining row, in the new order."""
        remaining = self.rows - len(removed)
        # Only as many rows move as there are gaps: closing up in order would copy nearly the whole cache.
        gaps = [row for row in sorted(removed) if row < remaining]
        movers = [row for row in range(remaining, self.rows) if row not in removed]
        order = list(range(remaining))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        if gaps:
            window = slice(self.start, self.end)
            buffers = [buffer[:, :, window] for layer in self.layers for buffer in layer.buffers]
            for tensor in (*buffers, self.valid, self.next):
                tensor[gaps] = tensor[movers]
        if self.prefixes:
            self.prefixes.keep(order)
        self.firsts = [self.firsts[row] for row in order]
        self.rows = remaining
        self._fit_window()
        return order

    def state(self, row: int) -> State:
        """A copy of what `row` has cached, its shared prefix included."""
        columns = self.start + self.valid[row, self.start : self.end].nonzero()[:, 0]
        layers: list[tuple[Tensor, Tensor] | None] = []
        for layer in self.layers:
            # Indexing by a tensor copies: the state stays when this row's columns are overwritten.
            stored = [buffer[row, :, columns] for buffer in layer.buffers]
            layers.append((stored[0], stored[1]) if stored else None)
        own = tuple(layers)
        return State(int(self.next[row]), _concatenated(self.prefixes.before(row), own) if self.prefixes else own)

    def _fit_window(self) -> None:
        """Start the window at the first column that a row uses; the mask has to be read if another row starts later."""
        self.bias = None
        self.start = min(self.firsts, default=self.end)
        self.padded = max(self.firsts, default=self.end) > self.start

    def _reserve(self, rows: int, width: int, more: int) -> None:
        """Make space; nothing happens where the buffers are large enough.

        Args:
            rows: rows needed.
            width: columns that must lie before `end`, for the positions of rows about to be added.
            more: columns needed from `end` on.
        """
        if not self.rows:
            self.start = self.end = width
        if rows <= self.capacity[0] and width <= self.end and self.end + more <= self.capacity[1]:
            return
        # The window moves as far left as `width` allows. That drops the columns of rows that were removed, so a long
        # run of short answers does not grow the buffers.
        window = slice(self.start, self.end)
        start = max(0, width - (self.end - self.start))
        end = start + self.end - self.start
        self.capacity = (max(rows, self.capacity[0]), end + more + max(SPARE_COLUMNS, end // 2))
        shift = self.start - start
        self.firsts = [first - shift for first in self.firsts]
        moved = slice(start, end)
        for layer in self.layers:
            old, layer.buffers = layer.buffers, ()
            if not old:
                continue
            for buffer, states in zip(layer.allocate(*old), old, strict=True):
                buffer[: self.rows, :, moved] = states[: self.rows, :, window]
        valid, following = self.valid.new_ones(self.capacity), self.next.new_zeros(self.capacity[0])
        valid[: self.rows, :start] = False
        valid[: self.rows, moved] = self.valid[: self.rows, window]
        following[: self.rows] = self.next[: self.rows]
        self.valid, self.next, self.start, self.end, self.bias = valid, following, start, end, None


def open_cache(forward: Forward, rows: int, columns: int = SPARE_COLUMNS) -> Cache:
    """An empty cache of the kind that the model's way of reading and its layers allow.

    Args:
        forward: the model.
        rows: rows to allocate.
        columns: columns to allocate.
    """
    if not forward.way.cached:
        return Rereading(forward)
    if not forward.way.ragged:
        return EqualLengths(lambda: _shared_columns(forward, rows, columns))
    return _shared_columns(forward, rows, columns)


def _shared_columns(forward: Forward, rows: int, columns: int) -> Slots | FixedRowsCache:
    """A cache of rows that end in one column: `Slots` where every layer keeps one state per position."""
    layer_types = set(getattr(text_config(forward.module), "layer_types", None) or ())
    layers = DynamicCache(config=forward.module.config).layers
    # Slots pad on the left, so a row's columns differ from its positions. A sliding window depends on distances alone
    # and does not notice; chunked attention depends on the column itself, and recurrent layers have no columns.
    by_position = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    by_position = by_position and bool(layers) and layer_types <= {"full_attention", "sliding_attention"}
    # Where rows of unequal length share columns, a model that takes no positions would count them by columns.
    if by_position and (forward.positions or not forward.way.ragged):
        return Slots(forward, rows, columns)
    return FixedRowsCache(forward)


def prefill(
    forward: Forward, texts: Sequence[Sequence[int]], before: State | None = None
) -> tuple[Tensor, list[State]]:
    """Run texts through the model, in as few passes as its way of reading allows.

    Args:
        forward: the model.
        texts: token ids of each text, none empty.
        before: state of a common prefix of all texts, which `texts` do not repeat.

    Returns:
        The logits [texts,V] of the token after each text, and the state of each text.
    """
    way = forward.way
    if way.ragged and way.together:
        return _read(forward, texts, before)
    logits: dict[int, Tensor] = {}
    states: dict[int, State] = {}
    for chosen in by_length(map(len, texts), way.together):
        read, cached = _read(forward, [texts[index] for index in chosen], before)
        logits |= zip(chosen, read, strict=True)
        states |= zip(chosen, cached, strict=True)
    return torch.stack([logits[index] for index in range(len(texts))]), [states[i] for i in range(len(texts))]


def _read(forward: Forward, texts: Sequence[Sequence[int]], before: State | None) -> tuple[Tensor, list[State]]:
    """`prefill` in one pass."""
    width = max(map(len, texts))
    rows = open_cache(forward, len(texts), (before.length if before else 0) + width)
    if before:
        rows.add([before] * len(texts))
    else:
        rows.start_empty(len(texts))
    # Padding goes on the left: rows end in the same column.
    ids = torch.tensor([[0] * (width - len(text)) + list(text) for text in texts], device=forward.device)
    lengths = torch.tensor([len(text) for text in texts], device=forward.device)
    ragged = any(len(text) < width for text in texts)
    # Without padding no mask is passed, and the model may use faster kernels.
    valid = torch.arange(width, device=forward.device) >= (width - lengths)[:, None] if ragged else None
    logits = rows.run(ids, valid)[:, 0]
    return logits, [rows.state(row) for row in range(len(texts))]


def common_prefix(texts: Sequence[Sequence[int]]) -> int:
    """Length of the prefix that all texts share; at least one token of each stays outside, whose logits are needed.

    The length is 0 for fewer than two texts, where sharing saves nothing.
    """
    if len(texts) < 2:
        return 0
    lists = [list(text) for text in texts]
    # All texts lie between the smallest and the largest in lexicographic order, and share what these two share.
    low, high = min(lists), max(lists)
    length = min(map(len, lists)) - 1
    return next((index for index in range(length) if low[index] != high[index]), length)


def _concatenated(before: Layers, after: Layers) -> Layers:
    """Keys and values [H,T,D] of two stretches of positions, one behind the other; None is an empty stretch."""
    layers: list[tuple[Tensor, Tensor] | None] = []
    for early, late in zip(before, after, strict=True):
        if early and late:
            layers.append((torch.cat((early[0], late[0]), 1), torch.cat((early[1], late[1]), 1)))
        else:
            layers.append(early or late)
    return tuple(layers)


def _runs(states: Sequence[State]) -> Iterator[tuple[State, int]]:
    """Each run of the same state, as the state and the length of the run."""
    for _, group in groupby(states, key=id):
        same = list(group)
        yield same[0], len(same)


@contextmanager
def sampling_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every submodule returns to the mode that it was in."""
    # `module.train()` at the end would also switch submodules that a tuner or a user keeps in eval mode.
    training = [submodule for submodule in module.modules() if submodule.training]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for submodule in training:
            submodule.training = True


@dataclass(frozen=True)
class Space:
    """Bounds of a cache: rows, and positions summed over rows."""

    rows: int
    positions: int

    def rows_of(self, length: int) -> int:
        """How many rows of `length` positions fit; at least one."""
        return max(1, min(self.rows, self.positions // max(1, length)))


def space_of(module: Any) -> Space:
    """Bounds of a cache of this model: 1 GiB on a CPU, a quarter of the free memory on a GPU."""
    config = text_config(module)
    # Models without attention name no heads; their states are smaller than what is assumed here.
    all_heads = getattr(config, "num_attention_heads", None) or 1
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    weight = next(module.parameters())
    bytes_per_position = 2 * config.num_hidden_layers * heads * width * weight.element_size()  # 2: key and value
    on_gpu = weight.device.type == "cuda"
    budget = torch.cuda.mem_get_info(weight.device)[0] // 4 if on_gpu else CPU_CACHE_BYTES
    return Space(GPU_ROWS if on_gpu else CPU_ROWS, budget // bytes_per_position)
