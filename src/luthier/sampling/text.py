"""The text of a continuation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from luthier.sampling.stops import cut


def answer_text(
    ids: Sequence[int], end_ids: Collection[int], decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()
) -> str:
    """The text of a continuation, without the token that ended it and up to the first of the stop strings.

    Args:
        ids: the tokens of the continuation.
        end_ids: tokens that end a continuation.
        decode: token ids to text.
        stop: the stop strings.
    """
    return cut(decode(ids[:-1] if ids and ids[-1] in end_ids else ids), stop)
