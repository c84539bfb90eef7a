"""Caches for models whose texts of unequal length cannot share a pass, or that keep no cache at all.

They have the methods of `Slots` (cache.py), are slower, and assume less of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.sampling.state import Cache, Forward, State, by_length

REREAD_POSITIONS = 4096  # of one pass over whole texts


@dataclass
class _Group:
    """Rows of one length in a cache of their own; `members` are their indices among all rows."""

    cache: Cache
    length: int
    members: list[int] = field(default_factory=list)


class EqualLengths:
    """Rows in one cache per length: every pass reads rows of equal length, without padding or mask.

    Args:
        open_cache: an empty cache for one length.
    """

    def __init__(self, open_cache: Callable[[], Cache]):
        self.open_cache = open_cache
        self.can_add = open_cache().can_add
        self.rows = 0
        self.groups: list[_Group] = []

    def start_empty(self, rows: int) -> None:
        """Start `rows` rows that have no tokens yet."""
        cache = self.open_cache()
        cache.start_empty(rows)
        self.groups, self.rows = [_Group(cache, 0, list(range(rows)))], rows

    def run(self, ids: Tensor, valid: Tensor | None = None, last: bool = True) -> Tensor:
        """Append tokens [rows,T], none of them padding; returns logits [rows,1,V] if `last`, else [rows,T,V]."""
        parts: list[tuple[list[int], Tensor]] = []
        for group in self.groups:
            parts.append((group.members, group.cache.run(ids[group.members], None, last)))
            group.length += ids.shape[1]
        return _in_order(parts, self.rows)

    def advance(self, ids: Tensor) -> Tensor:
        """Append one token [rows] to every row; returns logits [rows,V]."""
        return self.run(ids[:, None])[:, 0]

    def add(self, states: Sequence[State]) -> None:
        """Append one row for each of `states`, which the row continues."""
        keys = [id(state.fixed[0]) if state.fixed else state.length for state in states]
        for chosen in by_length(keys):
            group = self._group_for(states[chosen[0]].length)
            group.cache.add([states[index] for index in chosen])
            group.members += [self.rows + index for index in chosen]
        self.rows += len(states)

    def _group_for(self, length: int) -> _Group:
        """The rows of this length, if others can join them, else a new group."""
        for group in self.groups if self.can_add else ():
            if group.length == length:
                return group
        self.groups.append(_Group(self.open_cache(), length))
        return self.groups[-1]

    def remove(self, removed: set[int]) -> list[int]:
        """Remove rows; returns the old index of each remaining row, in the new order."""
        order: list[int] = []
        groups: list[_Group] = []
        for group in self.groups:
            kept = group.cache.remove({index for index, row in enumerate(group.members) if row in removed})
            if kept:
                order += [group.members[index] for index in kept]
                groups.append(_Group(group.cache, group.length, list(range(len(order) - len(kept), len(order)))))
        self.groups, self.rows = groups, len(order)
        return order

    def state(self, row: int) -> State:
        """What the row's cache holds of it."""
        group = next(group for group in self.groups if row in group.members)
        return group.cache.state(group.members.index(row))


class Rereading:
    """No cache: a step reads the whole text of every row again. Slow, and right for every causal model."""

    can_add = True

    def __init__(self, forward: Forward):
        self.forward = forward
        self.texts: list[list[int]] = []

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.texts)

    def start_empty(self, rows: int) -> None:
        """Start `rows` rows that have no tokens yet."""
        self.texts = [[] for _ in range(rows)]

    def run(self, ids: Tensor, valid: Tensor | None = None, last: bool = True) -> Tensor:
        """Append tokens [rows,T], padding left out; returns logits [rows,1,V] if `last`, else [rows,T,V]."""
        marks = None if valid is None else valid.tolist()
        for row, tokens in enumerate(ids.tolist()):
            self.texts[row] += (
                tokens if marks is None else [t for t, mark in zip(tokens, marks[row], strict=True) if mark]
            )
        count = 1 if last else ids.shape[1]
        parts: list[tuple[list[int], Tensor]] = []
        for group in by_length(map(len, self.texts), self.forward.way.together):
            length = len(self.texts[group[0]])
            size = max(1, REREAD_POSITIONS // length)
            for first in range(0, len(group), size):
                chosen = group[first : first + size]
                texts = torch.tensor([self.texts[row] for row in chosen], device=ids.device)
                parts.append((chosen, self.forward.plain(texts, range(length - count, length))))
        return _in_order(parts, self.rows)

    def advance(self, ids: Tensor) -> Tensor:
        """Append one token [rows] to every row; returns logits [rows,V]."""
        return self.run(ids[:, None])[:, 0]

    def add(self, states: Sequence[State]) -> None:
        """Append one row for each of `states`, which the row continues."""
        self.texts += [list(state.ids) for state in states]

    def remove(self, removed: set[int]) -> list[int]:
        """Remove rows; returns the old index of each remaining row."""
        order = [row for row in range(self.rows) if row not in removed]
        self.texts = [self.texts[row] for row in order]
        return order

    def state(self, row: int) -> State:
        """The row's tokens."""
        return State(len(self.texts[row]), ids=tuple(self.texts[row]))


def _in_order(parts: Sequence[tuple[list[int], Tensor]], rows: int) -> Tensor:
    """One tensor [rows,...] of parts, each with the indices of its rows."""
    if len(parts) == 1 and parts[0][0] == list(range(rows)):
        return parts[0][1]
    joined = torch.cat([part for _, part in parts])
    index = torch.tensor([row for members, _ in parts for row in members], device=joined.device)
    return torch.empty_like(joined).index_copy_(0, index, joined)
