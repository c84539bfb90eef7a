"""Records as sequences of hashed words, in which near-duplicates, conversations and documents are compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from luthier.data.shapes import good_side, last_answer, messages_of, plain_text
from luthier.keyed import hash64
from luthier.types import Record

WORDS = re.compile(r"\w+|[^\w\s]")
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Letters of scripts that put no spaces between words: Thai, Lao, Burmese, Khmer, kana and Chinese characters."""
LETTERS = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]")
"""As WORDS, with each of these letters as a word: a whole sentence would be one otherwise."""
FACTOR = 0x9E3779B97F4A7C15
INVISIBLE = (0x00AD, 0x200B, 0x2060, 0xFEFF)
"""Soft hyphen, zero-width space, word joiner and byte order mark, which no reader can see."""


@dataclass(frozen=True, slots=True)
class WordHashes:
    """The words of a record as hashes, uint64.

    Attributes:
        question: [Q], of everything before the last answer; of a text without turns all of it.
        answer: [A], of the last answer.
        system: [S], of the system messages before the last answer.
        turns: [T], of all other messages up to the last answer.
        asks: index in `turns` of the first word of each answer: what stands before it is what was asked.
        replies: index in `turns` behind each answer. A text without turns has one, and no question.
    """

    question: numpy.ndarray
    answer: numpy.ndarray
    system: numpy.ndarray
    turns: numpy.ndarray
    asks: tuple[int, ...]
    replies: tuple[int, ...]

    def asked_words(self, index: int) -> int:
        """The number of words before the answer `index` that are no answer."""
        answered = sum(end - start for start, end in zip(self.asks[:index], self.replies, strict=False))
        return self.asks[index] - answered


class _Vocabulary(dict[str, int]):
    """Word → hash, which is computed once."""

    def __missing__(self, word: str) -> int:
        self[word] = number = hash64(word, byteorder="big")
        return number


def _widths() -> dict[int, str | None]:
    """Half-width and full-width letters → the usual ones; invisible characters → None."""
    table: dict[int, str | None] = dict.fromkeys(INVISIBLE)
    for code in (0x3000, *range(0xFF01, 0xFFEF)):
        if unicodedata.decomposition(chr(code)).startswith(("<wide>", "<narrow>")):
            table[code] = unicodedata.normalize("NFKC", chr(code))
    return table


_WIDTHS = _widths()


def normal(text: str) -> str:
    """The text in lower case and one Unicode form, so that texts that look the same are the same.

    The form is NFC, with half-width and full-width letters as usual ones. Other compatible letters stay: NFKC would
    make `5²` the number 52.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text.translate(_WIDTHS))
    return text.lower()


def words_of(records: Sequence[Record], columns: Sequence[str] = ()) -> list[WordHashes]:
    """The words of each record.

    Args:
        columns: columns that the prompt holds besides the record's own question.
    """
    vocabulary = _Vocabulary()
    return [_read(record, columns, vocabulary) for record in records]


def prefixes(words: numpy.ndarray) -> numpy.ndarray:
    """Hashes [N] of the first 1, 2, … N of the words [N]."""
    return numpy.cumsum(words * powers(len(words)), dtype=numpy.uint64)


def sequence_hash(*sequences: numpy.ndarray) -> int:
    """The hash of the words of all sequences, one behind the other."""
    words = sequences[0] if len(sequences) == 1 else numpy.concatenate(sequences)
    # The length enters it: a word whose hash is 0 would otherwise not count.
    return int((words * powers(len(words))).sum(dtype=numpy.uint64)) ^ len(words)


def powers(count: int) -> numpy.ndarray:
    """FACTOR^0, FACTOR^1, … [count] modulo 2^64."""
    if count > len(_powers[0]):
        grown = numpy.full(max(count, 2 * len(_powers[0])), FACTOR, dtype=numpy.uint64)
        grown[0] = 1
        _powers[0] = numpy.cumprod(grown, dtype=numpy.uint64)
    return _powers[0][:count]


_powers = [numpy.ones(1, dtype=numpy.uint64)]


def _read(record: Record, columns: Sequence[str], vocabulary: _Vocabulary) -> WordHashes:
    before = [_hashed(str(record.fields[name]), vocabulary) for name in columns if _is_text(record.fields.get(name))]
    record = good_side(record)
    if record.shape == "text":
        text = numpy.concatenate([*before, _hashed(record.fields["text"], vocabulary)])
        return WordHashes(text, text[:0], text[:0], text, (), (len(text),))
    if record.shape == "preference" and record.fields["prompt"] is None and isinstance(record.fields["chosen"], str):
        chosen, rejected = (_hashed(record.fields[name], vocabulary) for name in ("chosen", "rejected"))
        whole = numpy.concatenate([*before, chosen])
        return WordHashes(whole, rejected, whole[:0], whole, (), (len(whole),))
    messages = messages_of(record)
    last = last_answer(messages)
    pieces = [_hashed(plain_text(message), vocabulary) for message in messages[: last + 1]]
    kept, system, asks, replies, length = list(before), [], [], [], sum(map(len, before))
    for message, piece in zip(messages, pieces, strict=False):
        if message["role"] == "system":
            system.append(piece)
            continue
        if message["role"] == "assistant":
            asks.append(length)
            replies.append(length + len(piece))
        kept.append(piece)
        length += len(piece)
    turns = _joined(kept)
    answer = turns[asks[-1] :] if asks else turns[:0]
    # Without system messages one array serves as both.
    question = _joined([*before, *pieces[:last]]) if system else turns[: len(turns) - len(answer)]
    return WordHashes(question, answer, _joined(system), turns, tuple(asks), tuple(replies))


_NOTHING = numpy.zeros(0, dtype=numpy.uint64)


def _joined(pieces: list[numpy.ndarray]) -> numpy.ndarray:
    return numpy.concatenate(pieces) if pieces else _NOTHING


def _is_text(cell: Any) -> bool:
    return isinstance(cell, str | int | float) and not isinstance(cell, bool)


def _hashed(text: str, vocabulary: _Vocabulary) -> numpy.ndarray:
    text = normal(text)
    words = (WORDS if text.isascii() else LETTERS).findall(text)
    return numpy.fromiter(map(vocabulary.__getitem__, words), dtype=numpy.uint64, count=len(words))
