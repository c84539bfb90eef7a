"""Made-up rows for the conformance matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy

from luthier.data.batches import prompt_length
from luthier.types import Row


def with_common_prompts(rows: Sequence[Row]) -> list[Row]:
    """Every second row with the prompt of the one before it, long enough to be shared."""
    found: list[Row] = []
    for place, row in enumerate(rows):
        start = rows[place - place % 2]
        length = prompt_length(row)
        ids = numpy.concatenate([numpy.resize(start.ids[: prompt_length(start)], 5), row.ids[length:]])
        streams = {
            name: replace(one, values=numpy.concatenate([numpy.zeros(5, one.values.dtype), one.values[length:]]))
            if one.axis == "token"
            else one
            for name, one in row.streams.items()
        }
        found.append(replace(row, ids=ids, streams=streams))
    return found
