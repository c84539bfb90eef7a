"""The identity of a record: everything that a recipe reads of it.

A record's content is what the model reads and learns by its shape. Parts and format strings may read further columns;
those tell records of the same content apart.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from luthier.data.shapes import CONTENT_COLUMNS, label_of, shape_columns
from luthier.types import EVERY, Record


def content_hash(record: Record, columns: Sequence[str] = ()) -> str:
    """Hex digest of what a model reads and learns of a record, and of further columns that a recipe reads.

    Args:
        columns: names of further columns, or EVERY. A record without them has the hash of its content alone.
    """
    # `label` is no column of CONTENT_COLUMNS: it counts only where it is read, as true or false.
    names = dict.fromkeys((*CONTENT_COLUMNS, *shape_columns()[record.shape]))
    content = {name: record.fields[name] for name in names if record.fields.get(name) is not None}
    if (label := label_of(record)) is not None:
        content["label"] = label
    described = [record.shape, content]
    if columns:
        read = [name for name in record.fields if name != "id"] if EVERY in columns else columns
        further = {name: record.fields[name] for name in read if record.fields.get(name) is not None}
        if further := {name: cell for name, cell in further.items() if name not in content}:
            described.append(further)
    text = json.dumps(described, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def identities(records: Sequence[Record], columns: Sequence[str] = ()) -> list[str]:
    """A hex digest of each record: equal for records in which a recipe reads the same.

    It is the hash of the content, where no two records of that content differ in a further column: what another
    recipe reads so leaves ids and splits alone, as long as it tells no records apart.

    Args:
        columns: as `content_hash` has them.
    """
    contents = [content_hash(record) for record in records]
    if not columns:
        return contents
    variants: dict[str, set[str]] = defaultdict(set)
    whole = [content_hash(record, columns) for record in records]
    for content, identity in zip(contents, whole, strict=True):
        variants[content].add(identity)
    return [
        content if len(variants[content]) == 1 else identity for content, identity in zip(contents, whole, strict=True)
    ]


def assign_ids(records: Sequence[Record], columns: Sequence[str] = ()) -> list[Record]:
    """The records with ids: of the column `id` if all records have different ones, else of their identities.

    A suffix distinguishes identical records without ids: `ab12...`, `ab12...-2`.

    Args:
        columns: as `content_hash` has them.
    """
    own = [record.fields.get("id") for record in records]
    # bool is a kind of int in Python: a column of flags is no column of ids.
    usable = all(isinstance(name, str | int) and not isinstance(name, bool) and name != "" for name in own)
    if records and usable and len({str(name) for name in own}) == len(own):
        return [replace(record, id=str(name)) for record, name in zip(records, own, strict=True)]
    counts: dict[str, int] = defaultdict(int)
    named = []
    for record, identity in zip(records, identities(records, columns), strict=True):
        key = identity[:16]
        counts[key] += 1
        named.append(replace(record, id=key if counts[key] == 1 else f"{key}-{counts[key]}"))
    return named
