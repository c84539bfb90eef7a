"""Conversations and documents in parts: records that continue one another, or are cut from one text.

A conversation written turn by turn is several records, each of which begins with the one before it; texts cut from a
document with an overlap begin with the end of another. What many different records begin with (a greeting, examples
before the question) is an opening, and joins nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy

from luthier.data.near import Groups
from luthier.data.words import FACTOR, Words, powers, prefixes

BRANCHES = 10  # different continuations from which a beginning is an opening
MANY = 0.5  # share of all conversations from which it is one, too
FEW_WORDS = 8  # words up to which a beginning with two continuations is one: a greeting
SPAN = 8  # words by which the beginning of a text is recognised in others
_TABLE_BITS = 22


def join_conversations(words: Sequence[Words], groups: Groups) -> None:
    """Join the conversations that have the same beginning, up to one of the user's turns, unless it is an opening."""
    contexts = [_contexts(record) for record in words]
    following: dict[int, set[int]] = defaultdict(set)
    depth: dict[int, int] = {}
    short: set[int] = set()
    for record, own in zip(words, contexts, strict=True):
        for index, (context, later) in enumerate(pairwise(own)):
            following[context].add(later)
            depth[context] = max(depth.get(context, 0), index)
            if record.asked_words(index) < FEW_WORDS:
                short.add(context)
    if not following:
        return
    leaves = len({own[-1] for own in contexts if own})
    openings: set[int] = set()
    for context in sorted(following, key=depth.__getitem__, reverse=True):
        branches = len(following[context])
        # What an opening begins with is one, too: all but the last of the examples before a question, for instance.
        if (
            _is_opening(branches, context in short)
            or (branches > 1 and branches > MANY * leaves)
            or not openings.isdisjoint(following[context])
        ):
            openings.add(context)
    first: dict[int, int] = {}
    for index, own in enumerate(contexts):
        for context in own:
            if context in following and context not in openings:
                groups.join(first.setdefault(context, index), index)


def _is_opening(branches: int, short: bool) -> bool:
    return branches > BRANCHES or (branches > 1 and short)


def _contexts(record: Words) -> list[int]:
    """The hash of what stands before each answer, in the order of the answers."""
    if not record.asks:
        return []
    hashes = prefixes(record.turns[: record.asks[-1]])
    return [int(hashes[end - 1]) ^ end if end else 0 for end in record.asks]


def join_texts(words: Sequence[Words], groups: Groups) -> None:
    """Join a record with those that begin with all of its words, such as turns of a conversation in one string."""
    wholes: dict[int, int] = {}
    for index, record in enumerate(words):
        if len(record.turns) >= SPAN:
            wholes.setdefault(_whole(record.turns), index)
    table = _Table(wholes)
    longer: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for index, record in enumerate(words):
        if len(record.turns) <= SPAN:
            continue
        hashes = prefixes(record.turns[:-1])[SPAN - 1 :]
        hashes ^= numpy.arange(SPAN, len(record.turns), dtype=numpy.uint64)
        for whole, position in table.hits(hashes):
            end = position + SPAN  # the number of words of the shorter record
            longer[whole].append((index, _span(record.turns, end)))
    for whole, others in longer.items():
        if not _is_opening(len({following for _, following in others}), short=False):
            for index, _ in others:
                groups.join(wholes[whole], index)


def join_overlapping(words: Sequence[Words], texts: Sequence[int], groups: Groups) -> None:
    """Join texts of which one begins within the other and repeats all that follows there, as windows of a document do.

    Args:
        texts: indices of the records that are texts without turns. The first and the last word of a text are not
            compared, since windows are often cut within a word.
    """
    begins: dict[int, list[int]] = defaultdict(list)
    for index in texts:
        if len(words[index].turns) > SPAN:
            begins[_span(words[index].turns, 1)].append(index)
    table = _Table(begins)
    for index in texts:
        text = words[index].turns
        if len(text) <= SPAN:
            continue
        for begin, position in table.hits(_spans(text)):
            candidates = begins[begin]
            if len(candidates) <= BRANCHES:  # more texts than that begin with a form, a title or a licence
                for other in candidates:
                    if other != index and _repeats(text[position:], words[other].turns[1:]):
                        groups.join(index, other)


def _repeats(tail: numpy.ndarray, text: numpy.ndarray) -> bool:
    """Whether one of two sequences is the beginning of the other, but for its last word."""
    length = min(len(tail), len(text)) - 1
    return length >= SPAN - 1 and numpy.array_equal(tail[:length], text[:length])


def _whole(words: numpy.ndarray) -> int:
    return int(prefixes(words)[-1]) ^ len(words)


def _span(words: numpy.ndarray, start: int) -> int:
    """The hash of up to SPAN words from an index on."""
    span = words[start : start + SPAN]
    return int((span * powers(len(span))).sum(dtype=numpy.uint64))


def _spans(words: numpy.ndarray) -> numpy.ndarray:
    """The hashes [N - SPAN + 1] of all sequences of SPAN words."""
    factor = numpy.uint64(FACTOR)
    count = len(words) - SPAN + 1
    hashes = words[SPAN - 1 : SPAN - 1 + count].copy()
    for offset in range(SPAN - 2, -1, -1):
        hashes *= factor
        hashes += words[offset : offset + count]
    return hashes


class _Table:
    """Which of many numbers are among the keys of a mapping, without a look-up of each."""

    def __init__(self, keys: Mapping[int, object]):
        self.keys = keys
        self.known = numpy.zeros(1 << _TABLE_BITS, dtype=bool)
        self.known[self._slots(numpy.fromiter(keys, dtype=numpy.uint64, count=len(keys)))] = True

    @staticmethod
    def _slots(hashes: numpy.ndarray) -> numpy.ndarray:
        return hashes >> numpy.uint64(64 - _TABLE_BITS)

    def hits(self, hashes: numpy.ndarray) -> Iterator[tuple[int, int]]:
        """Each of the numbers [N] that is a key, with its index."""
        positions = numpy.flatnonzero(self.known[self._slots(hashes)]).tolist()
        for position in positions:
            if (number := int(hashes[position])) in self.keys:
                yield number, position
