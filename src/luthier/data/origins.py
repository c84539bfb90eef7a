"""Columns that seem to say what records were cut from, though the recipe does not read them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from luthier.data.groups import LARGEST
from luthier.data.shapes import CONTENT_COLUMNS
from luthier.types import Record

NAMES = re.compile(
    r"(?:.*_)?(?:id|key|doc|docs|document|source|url|file|filename|path|title|article|book|page|passage|chapter"
    r"|conversation|dialog|dialogue|session|thread|episode|group|author|user|speaker|patient)",
    re.IGNORECASE,
)
FEWEST = 3  # different values of a column that names origins


def divided_origins(parts: Mapping[str, Sequence[Record]], read: Collection[str]) -> list[str]:
    """A sentence on each column that is named like an origin and has values in train and in another split.

    Args:
        parts: records by split.
        read: columns that the recipe reads; they are no origins.
    """
    trained: dict[str, Counter[str]] = defaultdict(Counter)
    held_out: dict[str, Counter[str]] = defaultdict(Counter)
    names: dict[str, bool] = {}  # name of a column → whether it may name origins
    for split, records in parts.items():
        counts = trained if split == "train" else held_out
        for record in records:
            for name, cell in record.fields.items():
                if name not in names:
                    unread = name not in CONTENT_COLUMNS and name not in read and name != "id"
                    names[name] = unread and NAMES.fullmatch(name) is not None
                if names[name] and isinstance(cell, str | int) and not isinstance(cell, bool) and cell != "":
                    counts[name][str(cell)] += 1
    notes, total = [], sum(map(len, parts.values()))
    for name, values in held_out.items():
        divided = [cell for cell in values if cell in trained[name]]
        largest = max((values[cell] + trained[name][cell] for cell in divided), default=0)
        # A value that many records share is a kind of record, such as the name of a data set, and no origin.
        if divided and len({*values, *trained[name]}) >= FEWEST and largest <= LARGEST * total:
            notes.append(
                f"{len(divided)} values of the column `{name}`, such as {divided[0][:40]!r}, are in train and held out."
                f" If it names what records were cut from, `data.group_by: {name}` keeps them together."
            )
    return notes
