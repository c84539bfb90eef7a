"""What groups of rows begin with, held and attended to once per group instead of once per row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.sampling.state import State

Pair = tuple[Tensor, Tensor]


class Trunks:
    """HiddenStateCache that rows continue, each held once, and which row continues which.

    Queries are laid out trunk by trunk, [trunks·H, group·repeats, D], so that one product serves all rows of a trunk;
    a trunk with fewer rows than the largest group is padded. Keys and values of a layer are [trunks, H, longest, D].
    """

    def __init__(self) -> None:
        self.states: list[State] = []
        self.of: list[int] = []
        self.layers: list[Pair] = []
        self.bias: Tensor | None = None
        self.longest = self.group = 0
        self.places: Tensor | None = None

    def enter(self, states: Sequence[State]) -> None:
        """Append rows that continue `states`; one that rows continue already is not held again."""
        known = {id(state): trunk for trunk, state in enumerate(self.states)}
        new = [state for state in {id(state): state for state in states}.values() if id(state) not in known]
        known |= {id(state): len(self.states) + place for place, state in enumerate(new)}
        first = len(self.states)
        self.states += new
        self.of += [known[id(state)] for state in states]
        self._make_room()
        for trunk, state in enumerate(new, first):
            self._put(trunk, state)
        self._arrange()

    def save_assets(self, order: Sequence[int]) -> None:
        """Keep the rows of these indices, in this order; trunks without rows are forgotten, the last ones move up."""
        self.of = [self.of[row] for row in order]
        for hole in sorted(set(range(len(self.states))) - set(self.of), reverse=True):
            last = self.states.pop()
            if hole < len(self.states):
                self.of = [hole if trunk == len(self.states) else trunk for trunk in self.of]
                self.states[hole] = last
                self._put(hole, last)
        self._arrange()

    def before(self, row: int) -> tuple[Pair | None, ...]:
        """Keys and values [H,T,D] of each layer that `row` continues."""
        return self.states[self.of[row]].layers

    def scores(self, layer: int, query: Tensor) -> Tensor:
        """Scores of queries [rows·H, repeats, D] at the positions of their trunks: [rows·H, repeats, longest]."""
        keys = self._seen(self.layers[layer][0])
        found = torch.bmm(self._by_trunk(query, keys), keys.transpose(1, 2))
        if self.bias is not None:
            heads = len(keys) // len(self.states)
            found.view(len(self.states), heads, -1, self.longest).add_(self.bias)
        return self._by_row(found, query.shape)

    def mixed(self, layer: int, weights: Tensor) -> Tensor:
        """Sums of the trunks' values under weights [rows·H, repeats, longest]: [rows·H, repeats, D]."""
        values = self._seen(self.layers[layer][1])
        return self._by_row(torch.bmm(self._by_trunk(weights, values), values), weights.shape)

    def _seen(self, buffer: Tensor) -> Tensor:
        return buffer[: len(self.states)].flatten(0, 1)[:, : self.longest]

    def _by_trunk(self, rows: Tensor, held: Tensor) -> Tensor:
        """[rows·H, repeats, X] → [trunks·H, group·repeats, X]."""
        heads, repeats, width = len(held) // len(self.states), *rows.shape[1:]
        split = rows.reshape(-1, heads * repeats, width)
        if self.places is not None:
            split = split.new_zeros((len(self.states) * self.group, *split.shape[1:])).index_copy_(
                0, self.places, split
            )
        split = split.reshape(len(self.states), self.group, heads, repeats * width)
        return split.transpose(1, 2).reshape(-1, self.group * repeats, width)

    def _by_row(self, trunks: Tensor, shape: torch.Size) -> Tensor:
        """[trunks·H, group·repeats, X] → [rows·H, repeats, X], `shape` telling rows·H and repeats."""
        width, count = trunks.shape[-1], len(self.states)
        split = trunks.view(count, len(trunks) // count, self.group, -1).transpose(1, 2)
        rows = split.reshape(count * self.group, -1)
        return (rows if self.places is None else rows[self.places]).view(shape[0], shape[1], width)

    def _put(self, trunk: int, state: State) -> None:
        for buffers, held in zip(self.layers, state.layers, strict=True):
            for buffer, one in zip(buffers, held, strict=True) if held else ():
                buffer[trunk, :, : state.length] = one

    def _make_room(self) -> None:
        count, longest = len(self.states), max(state.length for state in self.states)
        room = self.layers[0][0].shape if self.layers else (0, 0, 0, 0)
        if count <= room[0] and longest <= room[2]:
            return
        size = max(count, room[0]), max(longest, room[2])
        self.layers = [
            (_room(size, held[0]), _room(size, held[1])) for held in self.states[0].layers if held is not None
        ]
        for trunk, state in enumerate(self.states):
            self._put(trunk, state)

    def _arrange(self) -> None:
        """Where each row's queries lie among those of the trunks, and which positions are padding."""
        if not self.states:
            return
        counts = [0] * len(self.states)
        within: list[int] = []
        for trunk in self.of:
            within.append(counts[trunk])
            counts[trunk] += 1
        self.group = max(counts)
        places = [trunk * self.group + place for trunk, place in zip(self.of, within, strict=True)]
        like = self.layers[0][0]
        straight = places == [*range(len(self.states) * self.group)]
        self.places = None if straight else torch.tensor(places, device=like.device)
        lengths = [state.length for state in self.states]
        self.longest = max(lengths)
        self.bias = None
        if min(lengths) < self.longest:
            behind = (
                torch.arange(self.longest, device=like.device) >= torch.tensor(lengths, device=like.device)[:, None]
            )
            self.bias = torch.zeros(behind.shape, dtype=like.dtype, device=like.device)
            self.bias = self.bias.masked_fill_(behind, float("-inf"))[:, None, None]


def _room(size: tuple[int, int], like: Tensor) -> Tensor:
    """Zeros [trunks, H, longest, D] for states [H,T,D]."""
    return like.new_zeros((size[0], like.shape[0], size[1], like.shape[2]))
