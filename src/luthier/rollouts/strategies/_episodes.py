"""Cutting a solution into episodes: places between tokens where a part of it may end."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

SENTENCE = re.compile(r"[.!?。！？][\"'”’)\]]*\s*\Z")
NEAR = 4  # tokens before one that decide how it is written


def cut(ids: Sequence[int], episodes: int, decode: Callable[[Sequence[int]], str] | None) -> list[int]:
    """Ends of all episodes but the last: at most `episodes` - 1 places, nearly equally far apart.

    Args:
        ids: the solution.
        decode: ids to text, to end episodes where sentences and lines end; None allows every token.
    """
    places = list(range(1, len(ids))) if decode is None else sentence_ends(ids, decode)
    wanted = min(episodes - 1, len(places))
    chosen: list[int] = []
    first = 0
    for number in range(1, wanted + 1):
        ideal = number * len(ids) / (wanted + 1)
        last = len(places) - (wanted - number)
        best = min(range(first, last), key=lambda index: (abs(places[index] - ideal), index))
        chosen.append(places[best])
        first = best + 1
    return chosen


def sentence_ends(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """Places behind which a sentence or a line has ended and something follows."""
    pieces = []
    for index in range(len(ids)):
        start = max(0, index - NEAR)
        known = decode(ids[start:index])
        pieces.append(decode(ids[start : index + 1])[len(known) :])
    return [index for index in range(1, len(ids)) if _ends(pieces[index - 1], pieces[index])]


def _ends(before: str, behind: str) -> bool:
    """Whether a sentence or a line is complete between two pieces of text; line ends stay with what they end."""
    if behind.startswith("\n"):
        return False
    if before.rstrip(" ").endswith("\n"):
        return True
    return SENTENCE.search(before) is not None and (behind[:1].isspace() or before[-1:].isspace())
