"""Near-duplicates: records whose questions share most of their three-word sequences.

MinHash with banding proposes pairs, and the exact Jaccard index of their word sequences decides. Sequences that many
records share (an instruction, a form) say nothing about one record and do not count.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy

from luthier.data.shapes import question_and_answer
from luthier.keyed import hash64
from luthier.types import Record

WORDS = re.compile(r"\w+|[^\w\s]")
THRESHOLD = 0.8
BANDS, ROWS = 20, 5  # a pair at 0.8 is missed once in 2,500: (1 - 0.8^5)^20 = 0.0004
COMMON = 0.1  # word sequences in more than this share of the records are boilerplate
COMMON_FROM = 20  # records; with fewer, a tenth is one or two records, and any repetition would be boilerplate
LARGEST = 0.1  # a group above this share of the records shares a template, not a question: only identical ones stay
CROWD = 32  # members of a bucket that are compared with a new one, so that a crowded bucket costs no quadratic time

_STREAM = numpy.random.default_rng(20240229)
_FACTORS = _STREAM.integers(0, 2**63, BANDS * ROWS, dtype=numpy.uint64) * numpy.uint64(2) + numpy.uint64(1)
_OFFSETS = _STREAM.integers(0, 2**63, BANDS * ROWS, dtype=numpy.uint64)


def near_duplicates(records: Sequence[Record]) -> list[list[int]]:
    """Groups of indices of near-duplicates, most of them of one record; indices rise within a group.

    Args:
        records: compared by the text before the last answer; `text` records by the whole text.
    """
    texts = [question_and_answer(record) for record in records]
    shingles = _distinctive([_shingles(question) for question, _ in texts])
    groups = _Groups(len(records))
    first_of: dict[str, int] = {}
    for index, (question, _) in enumerate(texts):
        groups.join(first_of.setdefault(_normal(question), index), index)
    _join_similar(shingles, groups)
    limit = max(10, LARGEST * len(records))
    duplicates = []
    for members in groups.all():
        if len(members) <= limit:
            duplicates.append(members)
            continue
        identical: dict[str, list[int]] = defaultdict(list)
        for index in members:
            identical[_normal(" ".join(texts[index]))].append(index)
        duplicates += identical.values()
    return duplicates


def overlap(train: Sequence[Record], other: Sequence[Record], nearly: bool = True) -> tuple[list[str], list[str]]:
    """Ids of records of `other` whose question is also in `train`: word for word, and, if `nearly`, almost."""
    known = {_normal(question_and_answer(record)[0]) for record in train}
    exact = [record.id for record in other if _normal(question_and_answer(record)[0]) in known]
    if not nearly:
        return exact, []
    exact_ids = set(exact)
    near = []
    border = len(train)
    both = [*train, *other]
    for group in near_duplicates(both):
        if group[0] >= border:  # indices rise within a group: the first one tells whether train has a record in it
            continue
        others = [both[index].id for index in group if index >= border]
        near += [name for name in others if name not in exact_ids]
    return exact, near


class _Groups:
    """Union-find over indices."""

    def __init__(self, size: int):
        self.parent = list(range(size))

    def root(self, index: int) -> int:
        while self.parent[index] != index:
            self.parent[index] = self.parent[self.parent[index]]  # path halving keeps later searches short
            index = self.parent[index]
        return index

    def join(self, left: int, right: int) -> None:
        low, high = sorted((self.root(left), self.root(right)))
        self.parent[high] = low

    def all(self) -> Iterable[list[int]]:
        members: dict[int, list[int]] = defaultdict(list)
        for index in range(len(self.parent)):
            members[self.root(index)].append(index)
        return members.values()


def _normal(text: str) -> str:
    return " ".join(WORDS.findall(text.lower()))


def _shingles(text: str) -> numpy.ndarray:
    """Sorted distinct hashes, uint64, of all sequences of three words; a shorter text gives the hashes of its words."""
    words = numpy.array([_word(word) for word in WORDS.findall(text.lower())], dtype=numpy.uint64)
    if len(words) > 2:
        factor = numpy.uint64(0x9E3779B97F4A7C15)
        words = (words[:-2] * factor + words[1:-1]) * factor + words[2:]
    return numpy.unique(words)


@lru_cache(maxsize=2**16)
def _word(word: str) -> int:
    return hash64(word, byteorder="big")


def _distinctive(shingles: list[numpy.ndarray]) -> list[numpy.ndarray]:
    if len(shingles) < COMMON_FROM:
        return shingles
    hashes, counts = numpy.unique(numpy.concatenate(shingles), return_counts=True)
    common = hashes[counts > COMMON * len(shingles)]
    return [own[~numpy.isin(own, common)] for own in shingles]


def _join_similar(shingles: list[numpy.ndarray], groups: _Groups) -> None:
    """Join the pairs above the threshold among those that share a band of their MinHash signatures."""
    # Identical questions are joined already: the root of their group is compared for all of them.
    roots = [index for index, own in enumerate(shingles) if len(own) and groups.root(index) == index]
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    # In the order of the content: the order of the input must not choose the members that a crowded bucket compares.
    for index in sorted(roots, key=lambda index: shingles[index].tobytes()):
        signature = (shingles[index][:, None] * _FACTORS + _OFFSETS).min(axis=0)
        for band in range(BANDS):
            members = buckets[band, signature[band * ROWS : (band + 1) * ROWS].tobytes()]
            for other in members:
                if groups.root(other) != groups.root(index) and _similar(shingles[index], shingles[other]):
                    groups.join(other, index)
            if len(members) < CROWD:
                members.append(index)


def _similar(left: numpy.ndarray, right: numpy.ndarray) -> bool:
    shared = len(numpy.intersect1d(left, right, assume_unique=True))
    return shared >= THRESHOLD * (len(left) + len(right) - shared)
