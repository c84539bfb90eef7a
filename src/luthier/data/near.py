"""Near-duplicates: records whose questions share most of their three-word sequences.

MinHash with banding proposes pairs, and the exact Jaccard index of their word sequences decides. Sequences that many
records share (an instruction, a form) say nothing about one record and do not count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import numpy

from luthier.data.words import FACTOR, WordHashes, sequence_hash

THRESHOLD = 0.8
BANDS, ROWS = 20, 5  # a pair at 0.8 is missed once in 2,500: (1 - 0.8^5)^20 = 0.0004
COMMON = 0.1  # word sequences in more than this share of the records are boilerplate
COMMON_FROM = 20  # records; with fewer, a tenth is one or two records, and any repetition would be boilerplate
CROWD = 32  # members of a bucket that are compared with a new one, so that a crowded bucket costs no quadratic time
SLOT_BITS = 20
BLOCK = 4096  # word sequences that are hashed at once: their hashes fit a processor's cache

_STREAM = numpy.random.default_rng(20240229)
_FACTORS = _STREAM.integers(0, 2**63, BANDS * ROWS, dtype=numpy.uint64) * numpy.uint64(2) + numpy.uint64(1)
_OFFSETS = _STREAM.integers(0, 2**63, BANDS * ROWS, dtype=numpy.uint64)


class Groups:
    """Union-find over indices."""

    def __init__(self, size: int):
        self.parent = list(range(size))

    def root(self, index: int) -> int:
        """The smallest index of the group."""
        while self.parent[index] != index:
            self.parent[index] = self.parent[self.parent[index]]  # path halving keeps later searches short
            index = self.parent[index]
        return index

    def join(self, left: int, right: int) -> None:
        """Make one group of the groups of two indices."""
        low, high = sorted((self.root(left), self.root(right)))
        self.parent[high] = low

    def join_all(self, members: Sequence[int]) -> None:
        """Make one group of the groups of all members."""
        for index in members[1:]:
            self.join(members[0], index)

    def join_equal(self, keys: Iterable[object]) -> None:
        """Join the indices whose keys are equal; None equals nothing."""
        first: dict[object, int] = {}
        for index, key in enumerate(keys):
            if key is not None:
                self.join(first.setdefault(key, index), index)

    def all(self) -> list[list[int]]:
        """The indices of each group; they rise within a group."""
        members: dict[int, list[int]] = defaultdict(list)
        for index in range(len(self.parent)):
            members[self.root(index)].append(index)
        return list(members.values())


def join_near(words: Sequence[WordHashes], preambles: Sequence[Sequence[numpy.ndarray]], groups: Groups) -> None:
    """Join the records that ask the same question, word for word or nearly so.

    Args:
        preambles: for each record, words of its question that other questions begin with, too (an instruction, examples
            before the question): their sequences do not count.
    """
    groups.join_equal(sequence_hash(record.question) for record in words)
    shingles = []
    for record, preamble in zip(words, preambles, strict=True):
        own = _shingles(record.question)
        for common in preamble:
            own = own[~numpy.isin(own, _shingles(common))]
        shingles.append(own)
    _join_similar(_distinctive(shingles), groups)


def _shingles(words: numpy.ndarray) -> numpy.ndarray:
    """Sorted distinct hashes, uint64, of all sequences of three words; a shorter text gives the hashes of its words."""
    if len(words) > 2:
        factor = numpy.uint64(FACTOR)
        words = (words[:-2] * factor + words[1:-1]) * factor + words[2:]
    words = numpy.sort(words)
    return words[numpy.concatenate(([True], words[1:] != words[:-1]))] if len(words) else words


def _distinctive(shingles: list[numpy.ndarray]) -> list[numpy.ndarray]:
    if len(shingles) < COMMON_FROM:
        return shingles
    least, shift = COMMON * len(shingles), numpy.uint64(64 - SLOT_BITS)
    # Few slots are so full that they may hold a common sequence: only theirs are counted one by one.
    counts = numpy.zeros(1 << SLOT_BITS, dtype=numpy.int64)
    for start, end in _blocks([len(own) for own in shingles], 256 * BLOCK):
        slots = (numpy.concatenate(shingles[start:end]) >> shift).astype(numpy.int64)
        counts += numpy.bincount(slots, minlength=len(counts))
    full = counts > least
    if not full.any():
        return shingles
    hashes, counts = numpy.unique(numpy.concatenate([own[full[own >> shift]] for own in shingles]), return_counts=True)
    common = hashes[counts > least]
    if not len(common):
        return shingles
    return [own[~numpy.isin(own, common)] for own in shingles]


def _join_similar(shingles: list[numpy.ndarray], groups: Groups) -> None:
    """Join the pairs above the threshold among those that share a band of their MinHash signatures."""
    # Identical questions are joined already: the root of their group is compared for all of them.
    roots = [index for index, own in enumerate(shingles) if len(own) and groups.root(index) == index]
    bands = _bands([shingles[index] for index in roots])
    for band in range(BANDS if roots else 0):
        order = numpy.argsort(bands[:, band], kind="stable")
        keys = bands[order, band]
        borders = [0, *(numpy.flatnonzero(keys[1:] != keys[:-1]) + 1).tolist(), len(keys)]
        for start, end in pairwise(borders):
            if end - start > 1:
                _join_bucket([roots[index] for index in order[start:end].tolist()], shingles, groups)


def _join_bucket(bucket: list[int], shingles: list[numpy.ndarray], groups: Groups) -> None:
    if len(bucket) > CROWD:
        # In the order of the content: the order of the input must not choose the members that are compared.
        bucket.sort(key=lambda index: shingles[index].tobytes())
    for count, index in enumerate(bucket):
        for other in bucket[: min(count, CROWD)]:
            if groups.root(other) != groups.root(index) and _similar(shingles[index], shingles[other]):
                groups.join(other, index)


def _bands(shingles: Sequence[numpy.ndarray]) -> numpy.ndarray:
    """A number [N,BANDS] for each band of each MinHash signature: equal for equal bands."""
    bands = numpy.zeros((len(shingles), BANDS), dtype=numpy.uint64)
    factor = numpy.uint64(FACTOR)
    for start, end in _blocks([len(own) for own in shingles]):
        block = shingles[start:end]
        starts = [0, *accumulate(map(len, block[:-1]))]
        words = numpy.concatenate(block)
        for band in range(BANDS):
            for row in range(band * ROWS, (band + 1) * ROWS):
                least = numpy.minimum.reduceat(words * _FACTORS[row] + _OFFSETS[row], starts)
                bands[start:end, band] = (bands[start:end, band] + least) * factor
    return bands


def _blocks(lengths: Sequence[int], size: int = BLOCK) -> Iterable[tuple[int, int]]:
    """Ranges of records, each with about `size` word sequences."""
    start = total = 0
    for index, length in enumerate(lengths):
        total += length
        if total >= size:
            yield start, index + 1
            start, total = index + 1, 0
    if start < len(lengths):
        yield start, len(lengths)


def _similar(left: numpy.ndarray, right: numpy.ndarray) -> bool:
    shared = len(numpy.intersect1d(left, right, assume_unique=True))
    return shared >= THRESHOLD * (len(left) + len(right) - shared)
