"""Prefixes that several rows share (the prompt of a group), stored once and attended to once per group.

The idea is that of Hydragen (arXiv 2402.05099); here one softmax spans the prefix and the row's own positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.sampling.state import State

Pair = tuple[Tensor, Tensor]


class SharedPrefixes:
    """Prefixes that rows continue, each stored once, and which row continues which.

    Queries are grouped by prefix, [prefixes·H, group·repeats, D], so that one matrix product serves all rows of a
    prefix. H counts key-value heads, and `repeats` the query heads for each of them. `group` is the number of rows of
    the most used prefix; the others are padded to it. Keys and values of a layer are [prefixes,H,longest,D].

    Attributes:
        states: one state per prefix.
        prefix_of: the index of each row's prefix.
        layers: key and value buffers of each layer.
        bias: 0 or -inf for each position of a prefix, [prefixes,1,1,longest]; None where all are equally long.
        longest, group: see above.
        query_index: where each row's queries lie among prefixes·group; None where that is the order of the rows.
    """

    def __init__(self) -> None:
        self.states: list[State] = []
        self.prefix_of: list[int] = []
        self.layers: list[Pair] = []
        self.bias: Tensor | None = None
        self.longest = self.group = 0
        self.query_index: Tensor | None = None

    def add(self, states: Sequence[State]) -> None:
        """Append one row per state; a state that is stored already is not stored again."""
        # By identity: a prompt that was read twice is stored twice, and no tensors are compared.
        index_of = {id(state): prefix for prefix, state in enumerate(self.states)}
        first = len(self.states)
        for state in states:
            if id(state) not in index_of:
                index_of[id(state)] = len(self.states)
                self.states.append(state)
        self.prefix_of += [index_of[id(state)] for state in states]
        self._reserve()
        for prefix in range(first, len(self.states)):
            self._store(prefix, self.states[prefix])
        self._arrange()

    def keep(self, order: Sequence[int]) -> None:
        """Keep the rows of these indices, in this order; prefixes without rows are dropped."""
        self.prefix_of = [self.prefix_of[row] for row in order]
        unused = set(range(len(self.states))) - set(self.prefix_of)
        # From the end, so that the last prefix, which fills the gap, is one in use.
        for gap in sorted(unused, reverse=True):
            last = self.states.pop()
            if gap < len(self.states):
                self.prefix_of = [gap if prefix == len(self.states) else prefix for prefix in self.prefix_of]
                self.states[gap] = last
                self._store(gap, last)
        self._arrange()

    def before(self, row: int) -> tuple[Pair | None, ...]:
        """Keys and values [H,T,D] of each layer of the prefix that `row` continues."""
        return self.states[self.prefix_of[row]].layers

    def scores(self, layer: int, query: Tensor) -> Tensor:
        """Attention scores of queries [rows·H,repeats,D] at their prefixes' positions: [rows·H,repeats,longest]."""
        keys = self._in_use(self.layers[layer][0])
        scores = torch.bmm(self._by_prefix(query, keys), keys.transpose(1, 2))
        if self.bias is not None:
            heads = len(keys) // len(self.states)
            scores.view(len(self.states), heads, -1, self.longest).add_(self.bias)
        return self._by_row(scores, query.shape)

    def mixed(self, layer: int, weights: Tensor) -> Tensor:
        """Sums of the prefixes' values under weights [rows·H,repeats,longest]: [rows·H,repeats,D]."""
        values = self._in_use(self.layers[layer][1])
        return self._by_row(torch.bmm(self._by_prefix(weights, values), values), weights.shape)

    def _in_use(self, buffer: Tensor) -> Tensor:
        """The part of a buffer that holds prefixes, [prefixes·H,longest,D]."""
        return buffer[: len(self.states)].flatten(0, 1)[:, : self.longest]

    def _by_prefix(self, rows: Tensor, stored: Tensor) -> Tensor:
        """[rows·H,repeats,X] → [prefixes·H,group·repeats,X], for `stored` [prefixes·H,longest,D]."""
        heads, repeats, width = len(stored) // len(self.states), *rows.shape[1:]
        split = rows.reshape(-1, heads * repeats, width)
        # Padding rows stay zero. Their products are computed and never read.
        if self.query_index is not None:
            padded = split.new_zeros((len(self.states) * self.group, *split.shape[1:]))
            split = padded.index_copy_(0, self.query_index, split)
        split = split.reshape(len(self.states), self.group, heads, repeats * width)
        return split.transpose(1, 2).reshape(-1, self.group * repeats, width)

    def _by_row(self, grouped: Tensor, shape: torch.Size) -> Tensor:
        """[prefixes·H,group·repeats,X] → [rows·H,repeats,X]; `shape` holds rows·H and repeats."""
        width, count = grouped.shape[-1], len(self.states)
        split = grouped.view(count, len(grouped) // count, self.group, -1).transpose(1, 2)
        rows = split.reshape(count * self.group, -1)
        return (rows if self.query_index is None else rows[self.query_index]).view(shape[0], shape[1], width)

    def _store(self, prefix: int, state: State) -> None:
        """Copy keys and values [H,T,D] of a state into the buffers."""
        for buffers, stored in zip(self.layers, state.layers, strict=True):
            if stored is None:
                continue
            for buffer, states in zip(buffers, stored, strict=True):
                buffer[prefix, :, : state.length] = states

    def _reserve(self) -> None:
        """Allocate larger buffers where the prefixes do not fit, and store all prefixes in them."""
        count, longest = len(self.states), max(state.length for state in self.states)
        capacity = self.layers[0][0].shape if self.layers else (0, 0, 0, 0)
        if count <= capacity[0] and longest <= capacity[2]:
            return
        size = max(count, capacity[0]), max(longest, capacity[2])
        # All prefixes come from one model, so the first one says which layers keep keys and values.
        layers = [stored for stored in self.states[0].layers if stored is not None]
        self.layers = [(_zeros(size, keys), _zeros(size, values)) for keys, values in layers]
        for prefix, state in enumerate(self.states):
            self._store(prefix, state)

    def _arrange(self) -> None:
        """Set `group`, `longest`, `query_index` and `bias` for the rows and prefixes there are."""
        if not self.states:
            return
        counts = [0] * len(self.states)
        index_in_group: list[int] = []
        for prefix in self.prefix_of:
            index_in_group.append(counts[prefix])
            counts[prefix] += 1
        self.group = max(counts)
        positions = [prefix * self.group + index for prefix, index in zip(self.prefix_of, index_in_group, strict=True)]
        like = self.layers[0][0]
        # Groups of equal size, in order, need no reordering: that saves the copies at every layer and step.
        in_order = positions == [*range(len(self.states) * self.group)]
        self.query_index = None if in_order else torch.tensor(positions, device=like.device)
        lengths = [state.length for state in self.states]
        self.longest = max(lengths)
        # Buffers behind a shorter prefix hold zeros or an older prefix: softmax must not see these positions.
        self.bias = None
        if min(lengths) < self.longest:
            columns = torch.arange(self.longest, device=like.device)
            padding = columns >= torch.tensor(lengths, device=like.device)[:, None]
            self.bias = torch.zeros(padding.shape, dtype=like.dtype, device=like.device)
            self.bias = self.bias.masked_fill_(padding, float("-inf"))[:, None, None]


def _zeros(size: tuple[int, int], like: Tensor) -> Tensor:
    """Zeros [prefixes,H,longest,D] for states [H,T,D]; `size` is (prefixes, longest)."""
    return like.new_zeros((size[0], like.shape[0], size[1], like.shape[2]))
