"""Token weights that rows share: of most rows they are zeros and then ones, and take as much memory as the tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy

from luthier.types import Row, Stream

_LONGEST = 2**16
_STEP = numpy.repeat(numpy.array([0, 1], dtype=numpy.float32), _LONGEST)
_STEP.flags.writeable = False  # a row that changed its weights would change those of all others


def with_shared_weights(row: Row) -> Row:
    """The row with equal weights that lie in one array with those of other rows, if they are a prompt and an answer."""
    weights = row.streams["weights"].values
    zeros = len(weights) - int(numpy.count_nonzero(weights))
    if weights.dtype != numpy.float32 or len(weights) > _LONGEST:
        return row
    shared = _stream(zeros, len(weights), row.streams["weights"].pad)
    if not numpy.array_equal(shared.values, weights):
        return row
    return replace(row, streams={**row.streams, "weights": shared})


@lru_cache(maxsize=2**14)
def _stream(zeros: int, length: int, pad: float) -> Stream:
    return Stream(_STEP[_LONGEST - zeros : _LONGEST - zeros + length], "token", pad)
