"""What a continuation says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence


def answer_text(
    ids: Sequence[int], end_ids: Collection[int], decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()
) -> str:
    """The text of a continuation, without the token that ended it and up to the first of the stop strings.

    Args:
        ids: what was generated.
        decode: token ids to text.
    """
    text = decode(ids[:-1] if ids and ids[-1] in end_ids else ids)
    ends = [place for one in stop if (place := text.find(one)) >= 0]
    return text[: min(ends)] if ends else text
