"""Leaks: what held-out records share with the training records, counted by kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier.data.continuations import LONG
from luthier.data.continuations import exchanges as exchanges_of
from luthier.data.words import WordHashes, prefixes, sequence_hash
from luthier.types import Record

EXAMPLES = 3


@dataclass(frozen=True)
class Leaks:
    """Ids of held-out records, each in one of the first three lists at most.

    Attributes:
        exact: its question is asked in train, word for word.
        near: train holds a near-duplicate.
        related: train holds another part of the same conversation or document, or a record of the same group.
        answers: its answer, to the same question, is a part of a training record.
    """

    exact: list[str]
    near: list[str]
    related: list[str]
    answers: list[str]

    def to_json(self) -> dict[str, Any]:
        """The numbers, and some of the ids."""
        ids = dict.fromkeys([*self.exact, *self.near, *self.related, *self.answers])
        return {
            "exact": len(self.exact),
            "near": len(self.near),
            "related": len(self.related),
            "answers": len(self.answers),
            "examples": list(ids)[:EXAMPLES],
        }


@dataclass(frozen=True)
class Trained:
    """What the training records ask and answer, as hashes.

    Attributes:
        questions: everything before the last answer of each record.
        wholes: everything up to each answer and with it, system messages apart.
        exchanges: each question with its answer, without what comes before.
    """

    questions: set[int]
    wholes: set[int]
    exchanges: set[int]

    @classmethod
    def of(cls, train: Sequence[WordHashes]) -> Trained:
        """From the words of the training records."""
        trained = cls(set(), set(), set())
        for words in train:
            trained.questions.add(sequence_hash(words.question))
            trained.wholes.update(_answered(words))
            trained.exchanges.update(number for number, _ in exchanges_of(words))
        return trained

    def answers(self, words: WordHashes) -> bool:
        """Whether the last answer is trained behind all that comes before it, or behind the same question alone."""
        if not words.asks:
            return False
        if _answered(words)[-1] in self.wholes:
            return True
        number, length = exchanges_of(words)[-1]
        return number in self.exchanges and (len(words.asks) == 1 or length >= LONG)

    def leaks(self, other: Sequence[WordHashes], records: Sequence[Record], near: set[int], related: set[int]) -> Leaks:
        """The leaks into held-out records.

        Args:
            other: words of the held-out `records`.
            near: indices of held-out records with a near-duplicate in train.
            related: indices of held-out records that share more with a training record, or its group.
        """
        lists: dict[str, list[str]] = {"exact": [], "near": [], "related": [], "answers": []}
        for index, (record, words) in enumerate(zip(records, other, strict=True)):
            if sequence_hash(words.question) in self.questions:
                lists["exact"].append(record.id)
            elif index in near:
                lists["near"].append(record.id)
            elif index in related:
                lists["related"].append(record.id)
            if self.answers(words):
                lists["answers"].append(record.id)
        return Leaks(**lists)


def _answered(words: WordHashes) -> list[int]:
    """The hash of everything up to each answer and with it."""
    if not words.asks:
        return []
    hashes = prefixes(words.turns)
    return [int(hashes[end - 1]) ^ end if end else 0 for end in words.replies]
