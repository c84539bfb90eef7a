"""Which record is for training, validation or test: decided by its content, near-duplicates together.

A percentage places every group of near-duplicates by a hash of its content alone, so records added later
move no other record. A count takes the groups with the smallest hashes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.data.near import near_duplicates
from luthier.data.shapes import content_hash
from luthier.errors import DataError, RecipeError
from luthier.keyed import sha256_number
from luthier.types import Record

PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


@dataclass(frozen=True)
class Split:
    """Records by use. `duplicates`: exact copies removed; `groups`: sizes of the near-duplicate groups (> 1)."""

    train: list[Record]
    validation: list[Record]
    test: list[Record]
    duplicates: int
    groups: list[int]


def split_records(
    records: Sequence[Record],
    validation: str | int | None,
    test: str | int | None,
    *,
    seed: int = 0,
    deduplicate: bool = True,
) -> Split:
    """Divide records by content.

    Args:
        records: all records; their order does not matter to who goes where.
        validation: "10%", a number of records, or None for none.
        test: the same; it is taken first.
        seed: another seed, another division.
        deduplicate: drop all but the first of identical records.

    Raises:
        DataError: no records, or none left to train on.
        RecipeError: a share that is no percentage, or shares that leave nothing.
    """
    if not records:
        raise DataError("The training data is empty: no record in it can be used.")
    kept = unique(records) if deduplicate else list(records)
    groups = near_duplicates(kept)
    keys = [min(content_hash(kept[index]) for index in group) for group in groups]
    taken = divide(keys, groups, validation, test, seed)
    parts: Mapping[str, list[Record]] = defaultdict(list)
    for index, record in enumerate(kept):
        parts[taken.get(index, "train")].append(record)
    sizes = sorted((len(group) for group in groups if len(group) > 1), reverse=True)
    return Split(parts["train"], parts["validation"], parts["test"], len(records) - len(kept), sizes)


def divide(
    keys: Sequence[str],
    groups: Sequence[list[int]],
    validation: str | int | None,
    test: str | int | None,
    seed: int,
) -> dict[int, str]:
    """Who goes to `test` and `validation`, by index; the rest trains. A group's place is decided by its key alone.

    Raises:
        DataError: nothing is left to train on.
    """
    keyed = sorted((_position(key, seed), group) for key, group in zip(keys, groups, strict=True))
    taken: dict[int, str] = {}
    test_limit = _take(keyed, test, "test", 0.0, taken)
    _take(keyed, validation, "validation", test_limit, taken)
    total, found = sum(len(group) for group in groups), list(taken.values())
    if len(found) == total:
        raise DataError(
            f"Of {total} records {found.count('test')} go to test and {found.count('validation')} to validation: "
            "none is left to train on.",
            "Lower `data.test` or `data.validation`, or bring more records.",
        )
    return taken


def unique(records: Sequence[Record]) -> list[Record]:
    """The first of each set of records with identical content."""
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(content_hash(record), record)
    return list(first.values())


def share(value: str | int | None, name: str) -> float | int:
    """A share as a fraction (float) or a number of records (int); None is 0.

    Raises:
        RecipeError: neither; a percentage must be below 100.
    """
    if value is None:
        return 0
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = PERCENT.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or float(match[1]) >= 100:
        raise RecipeError(f"data.{name}: `{value}` is no share of the data.", 'Write "10%" or a number of records.')
    return float(match[1]) / 100


def is_share(value: object) -> bool:
    """Whether a setting is a share of the training source and not a source of its own."""
    return value is None or isinstance(value, int) or (isinstance(value, str) and PERCENT.fullmatch(value) is not None)


def _position(key: str, seed: int) -> float:
    """A number in [0, 1) that only the seed and the group's key (its smallest content hash) decide."""
    return sha256_number(f"{seed}:{key}", 7) / 2**56


def _take(
    keyed: list[tuple[float, list[int]]], value: str | int | None, name: str, start: float, taken: dict[int, str]
) -> float:
    """Assign groups to `name`: by position in [start, end) for a percentage, smallest first for a count."""
    wanted = share(value, name)
    free = [(position, group) for position, group in keyed if group[0] not in taken]
    if isinstance(wanted, int):
        left = wanted
        for _, group in free:
            if len(group) <= left:
                taken.update(dict.fromkeys(group, name))
                left -= len(group)
        return start
    end = start + wanted
    chosen = [group for position, group in free if start <= position < end]
    if not chosen and len(keyed) >= 3:
        # A small data set would otherwise lose the split by chance.
        chosen = [group for _, group in free[:1]]
    for group in chosen:
        taken.update(dict.fromkeys(group, name))
    return end
