"""Conversations and documents in parts: records that continue one another, or are cut from one text.

A conversation written turn by turn is several records, each of which begins with the one before it; texts cut from a
document with an overlap begin with the end of another. What many different records begin with (a greeting, examples
before the question) is an opening, and joins nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise

import numpy

from luthier.data.near import Groups
from luthier.data.words import FACTOR, WordHashes, powers, prefixes, sequence_hash

BRANCHES = 10  # different continuations from which a beginning is an opening
MANY = 0.5  # share of all conversations from which it is one, too
FEW_WORDS = 8  # words up to which a beginning with two continuations is one: a greeting
SPAN = 8  # words by which the beginning of a text is recognised in others
LONG = 20  # words from which a question with its answer is taken for the same wherever it stands in a conversation
WINDOWS = 4  # texts that a passage is in at most, if it tells that they are of one document
PASSAGE = 0.1  # share of the shorter text that two texts have in common
LEAST_SPANS = 3  # sampled sequences in common, at least: about a dozen words
_TABLE_BITS = 22


def join_conversations(words: Sequence[WordHashes], groups: Groups) -> list[list[numpy.ndarray]]:
    """Join the conversations that have the same beginning, up to one of the user's turns, unless it is an opening.

    Returns:
        The openings of each record: words [N] of turns and of a system message with which others begin.
    """
    contexts = [_contexts(record) for record in words]
    following, short = _followed(words, contexts)
    # Conversations whose end is the beginning of another one are no further ones.
    ends = [own[-1] if own and own[-1] not in following else None for own in contexts]
    leaves = len({end for end in ends if end is not None})
    openings: set[int] = set()
    for context, branches in following.items():  # from the longest beginnings to the shortest
        # What an opening begins with is one, too: all but the last of the examples before a question, for instance.
        if is_opening(len(branches), leaves, context in short) or not openings.isdisjoint(branches):
            openings.add(context)
    first: dict[int, int] = {}
    preambles = _instructions(words, ends, leaves)
    for index, own in enumerate(contexts):
        opened = 0
        for context, end in zip(own, words[index].asks, strict=True):
            if context in openings:
                opened = end
            elif context in following:
                groups.join(first.setdefault(context, index), index)
        if opened:
            preambles[index].append(words[index].turns[:opened])
    return preambles


def is_opening(branches: int, conversations: int, short: bool) -> bool:
    """Whether so many different continuations make a beginning one that says nothing about a conversation."""
    return branches > BRANCHES or (branches > 1 and (short or branches > MANY * conversations))


def _followed(words: Sequence[WordHashes], contexts: Sequence[Sequence[int]]) -> tuple[dict[int, set[int]], set[int]]:
    """The next contexts of each context that is not always the last, the longest first; and those of few words."""
    following: dict[int, set[int]] = defaultdict(set)
    depth: dict[int, int] = {}
    short: set[int] = set()
    for record, own in zip(words, contexts, strict=True):
        for index, (context, later) in enumerate(pairwise(own)):
            following[context].add(later)
            depth[context] = max(depth.get(context, 0), index)
            if record.asked_words(index) < FEW_WORDS:
                short.add(context)
    return {context: following[context] for context in sorted(depth, key=depth.__getitem__, reverse=True)}, short


def _instructions(
    words: Sequence[WordHashes], ends: Sequence[int | None], conversations: int
) -> list[list[numpy.ndarray]]:
    """The system message of each record before which many different questions are asked; an empty list without one."""
    asked: dict[int, set[int]] = defaultdict(set)
    for record, end in zip(words, ends, strict=True):
        if len(record.system) and end is not None:
            asked[_whole(record.system)].add(end)
    preambles: list[list[numpy.ndarray]] = []
    for record in words:
        branches = len(asked[_whole(record.system)]) if len(record.system) else 0
        preambles.append([record.system] if is_opening(branches, conversations, short=False) else [])
    return preambles


def _contexts(record: WordHashes) -> list[int]:
    """The hash of what stands before each answer, in the order of the answers."""
    if not record.asks:
        return []
    hashes = prefixes(record.turns[: record.asks[-1]])
    return [int(hashes[end - 1]) ^ end if end else 0 for end in record.asks]


def join_texts(words: Sequence[WordHashes], groups: Groups) -> None:
    """Join a record with those that begin with all of its words, such as turns of a conversation in one string.

    The words of its only question do as well: what a string holds before an answer, such as a name, its record has not.
    """
    wholes: dict[int, int] = {}
    for index, record in enumerate(words):
        for end in {*record.asks[:1], len(record.turns)} if len(record.asks) <= 1 else {len(record.turns)}:
            if end >= SPAN:
                wholes.setdefault(_whole(record.turns[:end]), index)
    table = _Table(wholes)
    longer: dict[int, list[tuple[int, int]]] = defaultdict(list)
    short: set[int] = set()
    for index, record in enumerate(words):
        if len(record.turns) <= SPAN:
            continue
        hashes = prefixes(record.turns[:-1])[SPAN - 1 :]
        hashes ^= numpy.arange(SPAN, len(record.turns), dtype=numpy.uint64)
        for whole, position in table.hits(hashes):
            end = position + SPAN  # the number of words of the shorter record, or of its question
            if end not in record.replies and end not in record.asks:  # else turns begin there, which are compared
                longer[whole].append((index, _span(record.turns, end)))
                short |= {whole} if end < 2 * FEW_WORDS else set()  # of a question and its answer
    texts = len({index for others in longer.values() for index, _ in others})
    for whole, others in longer.items():
        if not is_opening(len({following for _, following in others}), texts, whole in short):
            for index, _ in others:
                groups.join(wholes[whole], index)


def join_overlapping(words: Sequence[WordHashes], texts: Sequence[int], groups: Groups) -> None:
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


def join_exchanges(words: Sequence[WordHashes], groups: Groups) -> None:
    """Join conversations that hold the same long question with the same answer, as windows of one conversation do."""
    holders: dict[int, set[int]] = defaultdict(set)
    for index, record in enumerate(words):
        if len(record.asks) > 1:
            for exchange, length in exchanges(record):
                if length >= LONG:
                    holders[exchange].add(index)
    conversations = sum(len(record.asks) > 1 for record in words)
    for indices in holders.values():
        if len(indices) <= max(2, min(BRANCHES, MANY * conversations)):
            groups.join_all(sorted(indices))


def exchanges(record: WordHashes) -> list[tuple[int, int]]:
    """The hash of each question with its answer, without what comes before, and its number of words."""
    starts = (0, *record.replies[:-1])
    pairs = []
    for start, end in zip(starts, record.replies, strict=True):
        pairs.append((sequence_hash(record.turns[start:end]), end - start))
    return pairs


def join_passages(words: Sequence[WordHashes], texts: Sequence[int], groups: Groups) -> None:
    """Join texts that share a passage of at least a tenth of the shorter one, such as windows below a title.

    Passages are compared by a sample of their sequences of SPAN words, those half of them by their hash.

    Args:
        texts: indices of the records that are texts without turns.
    """
    sampled = []
    for index in texts:
        spans = numpy.unique(_spans(words[index].turns)) if len(words[index].turns) > SPAN else _NONE
        sampled.append(spans[(spans >> numpy.uint64(32)) & numpy.uint64(1) == 0])
    if not sampled:
        return
    owners = numpy.repeat(numpy.arange(len(texts)), [len(own) for own in sampled])
    spans = numpy.concatenate(sampled)
    order = numpy.argsort(spans, kind="stable")
    spans, owners = spans[order], owners[order]
    borders = numpy.flatnonzero(numpy.concatenate(([True], spans[1:] != spans[:-1], [True])))
    counts = numpy.diff(borders)
    shared: dict[tuple[int, int], int] = defaultdict(int)
    for start, count in zip(borders[:-1][counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        if count <= max(2, min(WINDOWS, MANY * len(texts))):  # more texts than that hold a form or a licence
            for pair in combinations(owners[start : start + count].tolist(), 2):
                shared[pair] += 1
    for (first, second), count in shared.items():
        if count >= max(LEAST_SPANS, PASSAGE * min(len(sampled[first]), len(sampled[second]))):
            groups.join(texts[first], texts[second])


_NONE = numpy.zeros(0, dtype=numpy.uint64)


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
