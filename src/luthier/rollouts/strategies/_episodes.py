"""Cuts a solution into episodes: finds the token boundaries where a part of it may end."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

SENTENCE = re.compile(r"[.!?。！？][\"'”’)\]]*\s*\Z")
DECODING_CONTEXT = 4  # tokens decoded before a token, since they may decide how it is written


def cut(ids: Sequence[int], episodes: int, decode: Callable[[Sequence[int]], str] | None) -> list[int]:
    """Ends of all episodes but the last: at most `episodes` - 1 token indices, as evenly spaced as they can be.

    Args:
        ids: token ids of the solution.
        episodes: the largest number of parts.
        decode: ids to text, so that episodes end with sentences and lines; None: an episode may end at any token.
    """
    candidates = list(range(1, len(ids))) if decode is None else sentence_ends(ids, decode)
    wanted = min(episodes - 1, len(candidates))
    ends: list[int] = []
    first = 0
    for number in range(1, wanted + 1):
        ideal = number * len(ids) / (wanted + 1)
        # Candidates from `last` on are reserved for the ends that follow.
        last = len(candidates) - (wanted - number)
        nearest = min(range(first, last), key=lambda index: (abs(candidates[index] - ideal), index))
        ends.append(candidates[nearest])
        first = nearest + 1
    return ends


def sentence_ends(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """Token indices before which a sentence or a line has ended; the solution's own end is not among them."""
    # Token by token, as text does not tell which token a letter belongs to.
    pieces = []
    for index in range(len(ids)):
        start = max(0, index - DECODING_CONTEXT)
        known = decode(ids[start:index])
        pieces.append(decode(ids[start : index + 1])[len(known) :])
    return [index for index in range(1, len(ids)) if _ends(pieces[index - 1], pieces[index])]


def _ends(before: str, behind: str) -> bool:
    """Whether a sentence or a line ends between two pieces of text; a line break belongs to the line it ends."""
    if behind.startswith("\n"):
        return False
    if before.rstrip(" ").endswith("\n"):
        return True
    return SENTENCE.search(before) is not None and (behind[:1].isspace() or before[-1:].isspace())
