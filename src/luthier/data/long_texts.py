"""Records far longer than `data.max_tokens`: only their beginning is tokenised, since the rest is dropped or cut away.

The tokenizer takes some 300 bytes of memory for each character, so a document of 10 MB would take gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from luthier.data.templates import Rendered
from luthier.types import Record

CHARACTERS = 16  # of the beginning, for each token that is kept: most texts have 3 to 6
SMALLEST = 2**16
FAR = 4


def is_long(record: Record, most: int) -> bool:
    """Whether the record has several times the characters of the beginning that is enough for `most` tokens."""
    enough = FAR * _characters(most)
    return len(record.fields) > 0 and _length(record.fields, enough) > enough


def beginning(rendered: Rendered, most: int, count: Callable[[str], int]) -> Rendered:
    """A rendered record cut to the characters that surely hold more than `most` tokens; unchanged if they may not.

    Args:
        rendered: a record that `is_long`.
        most: tokens of a row that are kept.
        count: text → its number of tokens.
    """
    end = _characters(most)
    # Twice as many: the tokens at the cut differ from those of the whole text, and those before it do not.
    if len(rendered.text) <= end or count(rendered.text[:end]) <= 2 * most:
        return rendered
    spans = []
    for span in rendered.spans:
        if span.end <= end:
            spans.append(span)
        elif span.start < end:
            spans.append(replace(span, end=end, answer=""))  # the rest of the answer is not there to be compared
    start = rendered.answer_start
    start = None if start is None or start >= end else start
    return replace(rendered, text=rendered.text[:end], spans=tuple(spans), answer_start=start, close=False)


def _characters(most: int) -> int:
    return max(SMALLEST, CHARACTERS * most)


def _length(content: Any, enough: int) -> int:
    """Characters of all texts within, counted until they are more than `enough`."""
    if isinstance(content, str):
        return len(content)
    inner = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    total = 0
    for member in inner:
        total += _length(member, enough)
        if total > enough:
            break
    return total
