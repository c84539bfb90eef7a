"""The states of many continuations in one key-value cache: rows enter, grow together, leave and fork."""

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
from luthier.sampling._trunks import Trunks
from luthier.sampling.state import Forward, Layers, State, WholeCache

ROOM = 16  # free columns that a full buffer gets, or half its width: answers are often short, and zeros take time too
CPU_BUDGET = 1 << 30
CPU_ROWS, GPU_ROWS = 64, 256  # 64 rows decode 1.2 times the tokens per second of 32, 96 hardly more


class _Layer(DynamicLayer):
    """Keys and values [rows, H, columns, D]; the model sees the window of rows and columns in use."""

    def __init__(self, slots: Slots):
        super().__init__()
        self.slots = slots
        self.buffers: tuple[Tensor, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put the states of new positions behind the others; returns all keys and all values of the window."""
        slots, end = self.slots, self.slots.end + key_states.shape[-2]
        for buffer, states in zip(self.made_for(key_states, value_states), (key_states, value_states), strict=True):
            buffer[: slots.rows, :, slots.end : end] = states
        keys, values = (buffer[: slots.rows, :, slots.start : end] for buffer in self.buffers)
        return keys, values

    def made_for(self, *states: Tensor) -> tuple[Tensor, ...]:
        """The buffers, made when the first states [...,H,T,D] come."""
        if not self.buffers:
            self.is_initialized, self.dtype, self.device = True, states[0].dtype, states[0].device
            rows, columns = self.slots.room
            self.buffers = tuple(one.new_zeros((rows, one.shape[-3], columns, one.shape[-1])) for one in states)
        return self.buffers

    def get_seq_length(self) -> int:
        """Columns of the window."""
        return self.slots.end - self.slots.start


class Slots:
    """Rows that end in one column, so that a step writes one column and a row can enter or leave at any time.

    Row r holds its positions in columns `firsts[r]` to `end`, and `next[r]` comes next; the model sees columns `start`
    to `end`, where `seen` marks what is real. Buffers are made once and grow rarely. With `trunks` the positions before
    a row entered are there, once for all rows that continue them; only a decoder of our own reads them.

    Args:
        forward: the model.
        rows: rows to make room for.
        columns: columns to make room for.
    """

    plain = True

    def __init__(self, forward: Forward, rows: int, columns: int = ROOM):
        self.forward = forward
        self.rows = self.start = self.end = 0
        self.room = (rows, columns)
        self.firsts: list[int] = []
        self.padded = False
        self.seen = torch.ones(self.room, dtype=torch.bool, device=forward.device)
        self.next = torch.zeros(rows, dtype=torch.long, device=forward.device)
        self.cache = DynamicCache(config=forward.module.config)
        self.decoder: Callable[[Tensor, Slots, Tensor | None], Tensor] | None = None  # ids, slots, bias → logits
        self.trunks: Trunks | None = None
        self.bias: Tensor | None = None
        self.layers = [_Layer(self) for _ in self.cache.layers]
        self.cache.layers = [*self.layers]  # pyright: ignore[reportAttributeAccessIssue]

    def blank(self, rows: int) -> None:
        """Take in rows without a position."""
        self._make_room(rows, 0, 1)
        self.rows = rows
        self.firsts = [0] * rows
        self.next[:rows] = 0

    def run(self, ids: Tensor, valid: Tensor | None = None, last: bool = True) -> Tensor:
        """Append tokens [rows,T] to all rows; returns logits [rows,1 or T,V]. `valid` [rows,T] is False for padding."""
        width = ids.shape[1]
        self._make_room(self.rows, 0, width)
        columns, rows = slice(self.end, self.end + width), slice(self.rows)
        if valid is None:
            positions = self.next[rows, None] + torch.arange(width, device=ids.device)
            counts = width
        else:
            self.seen[rows, columns] = valid
            self.padded = True
            positions = self.next[rows, None] + (valid.cumsum(-1) - 1).clamp(min=0)
            counts = valid.sum(-1)
        mask = self.seen[rows, self.start : columns.stop] if self.padded else None
        logits = self.forward(ids, mask, positions, self.cache, last)
        self.end += width
        self.next[rows] += counts
        return logits

    def advance(self, ids: Tensor) -> Tensor:
        """Append one token [rows] to every row; returns logits [rows,V]."""
        if self.decoder is None:
            return self.run(ids[:, None])[:, 0]
        self._make_room(self.rows, 0, 1)
        if self.padded and self.bias is None:
            self.bias = torch.zeros((self.room[0], 1, self.room[1]), dtype=self.forward.dtype, device=ids.device)
            self.bias.masked_fill_(~self.seen[:, None], float("-inf"))
        logits = self.decoder(ids, self, self.bias if self.padded else None)
        self.end += 1
        self.next[: self.rows] += 1
        return logits

    def enter(self, states: Sequence[State]) -> None:
        """Append rows that continue `states`; equal states next to each other are copied at once."""
        longest = 0 if self.trunks else max(state.length for state in states)
        self._make_room(self.rows + len(states), longest, 1)
        if self.trunks:
            self.trunks.enter(states)
        place = self.rows
        for state, count in _runs(states):
            rows, first = slice(place, place + count), self.end if self.trunks else self.end - state.length
            if not self.trunks:
                self._put(rows, first, state)
            self.seen[rows, :first] = False
            self.seen[rows, first:] = True
            self.next[rows] = state.length
            self.firsts += [first] * count
            place += count
        self.rows = place
        self._fit_window()

    def _put(self, rows: slice, first: int, state: State) -> None:
        for layer, held in zip(self.layers, state.layers, strict=True):
            for buffer, one in zip(layer.made_for(*held), held, strict=True) if held else ():
                buffer[rows, :, first : self.end] = one

    def save_assets(self, gone: set[int]) -> list[int]:
        """Drop rows; the last ones move into their places. Returns the old index of each row that stays."""
        left = self.rows - len(gone)
        holes = [row for row in sorted(gone) if row < left]
        movers = [row for row in range(left, self.rows) if row not in gone]
        order = list(range(left))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        if holes and left:
            window = slice(self.start, self.end)
            tensors = [buffer[:, :, window] for layer in self.layers for buffer in layer.buffers]
            for tensor in (*tensors, self.seen, self.next):
                tensor[holes] = tensor[movers]
        if self.trunks:
            self.trunks.save_assets(order)
        self.firsts = [self.firsts[row] for row in order]
        self.rows = left
        self._fit_window()
        return order

    def state(self, row: int) -> State:
        """A copy of what `row` has cached."""
        columns = self.start + self.seen[row, self.start : self.end].nonzero()[:, 0]
        held = [tuple(buffer[row, :, columns] for buffer in layer.buffers) for layer in self.layers]
        layers = tuple((one[0], one[1]) if one else None for one in held)
        return State(int(self.next[row]), _joined(self.trunks.before(row), layers) if self.trunks else layers)

    def _fit_window(self) -> None:
        self.bias = None
        self.start = min(self.firsts, default=self.end)
        self.padded = max(self.firsts, default=self.end) > self.start

    def _make_room(self, rows: int, width: int, more: int) -> None:
        """Room for `rows` rows, of which new ones have `width` positions, and for `more` columns behind `end`."""
        if not self.rows:
            self.start = self.end = width
        left = max(0, width - self.end)
        if rows <= self.room[0] and not left and self.end + more <= self.room[1]:
            return
        window = slice(self.start, self.end)
        start = max(0, width - (self.end - self.start))
        end = start + self.end - self.start
        self.room = (max(rows, self.room[0]), end + more + max(ROOM, end // 2))
        shift = self.start - start
        self.firsts = [first - shift for first in self.firsts]
        moved = slice(start, end)
        for layer in self.layers:
            old, layer.buffers = layer.buffers, ()
            for buffer, one in zip(layer.made_for(*old), old, strict=True) if old else ():
                buffer[: self.rows, :, moved] = one[: self.rows, :, window]
        seen, follow = self.seen.new_ones(self.room), self.next.new_zeros(self.room[0])
        seen[: self.rows, :start] = False
        seen[: self.rows, moved] = self.seen[: self.rows, window]
        follow[: self.rows] = self.next[: self.rows]
        self.seen, self.next, self.start, self.end, self.bias = seen, follow, start, end, None


def open_rows(forward: Forward, rows: int, columns: int = ROOM) -> Slots | WholeCache:
    """Room for rows of the cache that fits the model's layers."""
    text = text_config(forward.module)
    kinds = set(getattr(text, "layer_types", None) or ())
    layers = DynamicCache(config=forward.module.config).layers
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    plain = plain and bool(layers) and kinds <= {"full_attention", "sliding_attention"}
    return Slots(forward, rows, columns) if plain and forward.positions else WholeCache(forward)


def prefill(
    forward: Forward, texts: Sequence[Sequence[int]], before: State | None = None
) -> tuple[Tensor, list[State]]:
    """Run texts in one pass.

    Args:
        forward: the model.
        texts: token ids of each, none empty.
        before: what comes before all of them, run earlier.

    Returns:
        The last logits [texts,V] and the state of each.
    """
    width = max(map(len, texts))
    rows = open_rows(forward, len(texts), (before.length if before else 0) + width)
    if before:
        rows.enter([before] * len(texts))
    else:
        rows.blank(len(texts))
    ids = torch.tensor([[0] * (width - len(text)) + list(text) for text in texts], device=forward.device)
    lengths = torch.tensor([len(text) for text in texts], device=forward.device)
    ragged = any(len(text) < width for text in texts)
    valid = torch.arange(width, device=forward.device) >= (width - lengths)[:, None] if ragged else None
    logits = rows.run(ids, valid)[:, 0]
    return logits, [rows.state(row) for row in range(len(texts))]


def common_prefix(texts: Sequence[Sequence[int]]) -> int:
    """Length of what all texts begin with, leaving each a token of its own; 0 where it saves nothing."""
    if len(texts) < 2:
        return 0
    lists = [list(text) for text in texts]
    low, high = min(lists), max(lists)  # what the extremes of the order share, all share
    length = min(map(len, lists)) - 1
    return next((place for place in range(length) if low[place] != high[place]), length)


def _joined(before: Layers, after: Layers) -> Layers:
    """Positions behind one another, layer by layer; None stands for none."""
    both = zip(before, after, strict=True)
    return tuple((torch.cat((a[0], b[0]), 1), torch.cat((a[1], b[1]), 1)) if a and b else a or b for a, b in both)


def _runs(states: Sequence[State]) -> Iterator[tuple[State, int]]:
    """Each state with how many times it stands in a row."""
    for _, same in groupby(states, key=id):
        found = list(same)
        yield found[0], len(found)


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


@dataclass(frozen=True)
class Space:
    """How much may be cached at once: rows, and positions over all rows."""

    rows: int
    positions: int

    def rows_of(self, length: int) -> int:
        """How many rows of `length` positions fit; at least one."""
        return max(1, min(self.rows, self.positions // max(1, length)))


def space_of(module: Any) -> Space:
    """What the memory has room for: 1 GiB of cache on a CPU, a quarter of the free memory on a GPU."""
    config = text_config(module)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    weight = next(module.parameters())
    per_position = 2 * config.num_hidden_layers * heads * width * weight.element_size()
    on_gpu = weight.device.type == "cuda"
    budget = torch.cuda.mem_get_info(weight.device)[0] // 4 if on_gpu else CPU_BUDGET
    return Space(GPU_ROWS if on_gpu else CPU_ROWS, budget // per_position)
