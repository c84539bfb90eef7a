"""Groups of records that are not independent, so that each stays on one side of a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.data.continuations import (
    join_conversations,
    join_exchanges,
    join_overlapping,
    join_passages,
    join_texts,
)
from luthier.data.near import Groups, join_near
from luthier.data.words import WordHashes, sequence_hash, words_of
from luthier.errors import DataError, nearest
from luthier.types import Record

LARGEST = 0.1  # a chain above this share of the records shares a template, not a question
FEW = 10  # records that a chain may always have


@dataclass(frozen=True)
class Grouping:
    """Groups of records by index.

    Attributes:
        groups: the indices of each group, rising; most are of one record.
        near: for each record a number that a chain of near-duplicates shares, whether it is one group or was divided.
        parts: the same of a chain of records that share passages.
        divided: records in chains that were too long to stay together.
    """

    groups: list[list[int]]
    near: list[int]
    parts: list[int]
    divided: int


def group_records(
    records: Sequence[Record], words: Sequence[WordHashes] | None = None, column: str | None = None
) -> Grouping:
    """Group the records that are near-duplicates, parts of one conversation or document, or equal in a column.

    A chain of near-duplicates, or of records that share passages, that takes in more than a tenth of the records would
    decide the split alone: of these only records with the same question stay together, or, if they all ask the same,
    with the same answer, too.

    Args:
        words: the words of the records; None: those of their content alone.
        column: records that have the same value there are a group, whatever they say; null there says nothing.

    Raises:
        DataError: no record has `column`.
    """
    words = words_of(records) if words is None else words
    texts = [index for index, record in enumerate(records) if record.shape == "text"]
    groups, near, parts = (Groups(len(records)) for _ in range(3))
    preambles = join_conversations(words, groups)
    join_texts(words, groups)
    join_overlapping(words, texts, groups)
    if column is not None:
        groups.join_equal(_cells(records, column))
    join_near(words, preambles, near)
    join_exchanges(words, parts)
    join_passages(words, texts, parts)
    divided = _join_chains(groups, near, words) + _join_chains(groups, parts, words)
    roots = [[union.root(index) for index in range(len(records))] for union in (near, parts)]
    return Grouping(groups.all(), roots[0], roots[1], divided)


def _join_chains(groups: Groups, chains: Groups, words: Sequence[WordHashes]) -> int:
    """Join in `groups` what `chains` joins, and of chains that are too long what is the same; their records' number."""
    limit, divided = max(FEW, LARGEST * len(words)), 0
    for members in chains.all():
        if len(members) <= limit:
            groups.join_all(members)
            continue
        for same in _by_words(words, members, limit):
            groups.join_all(same)
        if len({groups.root(index) for index in members}) > 1:
            divided += len(members)
    return divided


def with_groups(records: Sequence[Record], grouping: Grouping) -> list[Record]:
    """The records with the id of their group: the smallest id of its records."""
    named = list(records)
    for members in grouping.groups:
        name = min(records[index].id for index in members)
        for index in members:
            named[index] = replace(records[index], group=name)
    return named


def _by_words(words: Sequence[WordHashes], members: Sequence[int], limit: float) -> list[list[int]]:
    """The members by their question; those of a question that more than `limit` ask, by their answer, too."""
    asked: dict[int, list[int]] = defaultdict(list)
    for index in members:
        asked[sequence_hash(words[index].question)].append(index)
    divided: list[list[int]] = []
    for same in asked.values():
        if len(same) <= limit:
            divided.append(same)
            continue
        answered: dict[int, list[int]] = defaultdict(list)
        for index in same:
            answered[sequence_hash(words[index].question, words[index].answer)].append(index)
        divided += answered.values()
    return divided


def _cells(records: Sequence[Record], column: str) -> list[Hashable]:
    """The value of a column in each record, as text; None without one."""
    cells = [record.fields.get(column) for record in records]
    if all(cell is None for cell in cells):
        names = list(dict.fromkeys(name for record in records for name in record.fields))
        close = nearest(column, names)
        raise DataError(
            f"No record has the column `{column}`, by which `data.group_by` keeps records together.",
            f"Did you mean `{close}`?" if close else f"Columns: {', '.join(names)}.",
        )
    return [None if cell is None else _text(cell) for cell in cells]


def _text(cell: Any) -> str:
    # 7 of one file and "7" of another, a CSV file, name the same document.
    return str(cell).strip()
