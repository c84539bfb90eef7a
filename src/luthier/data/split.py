"""The split of records into training, validation and test, by their content, with near-duplicates together.

A percentage assigns every group of near-duplicates by the hash of its content alone, so a record added later
moves no other record. A count takes the groups with the smallest hashes.
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
    """Records by split. `duplicates`: removed exact copies; `groups`: sizes (> 1) of the near-duplicate groups."""

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
        records: all records; their order has no influence on the split of any of them.
        validation: "10%", a number of records, or None for none.
        test: the same; test records are assigned first, so a change of `validation` leaves them alone.
        seed: each seed gives another division.
        deduplicate: drop all but the first of identical records.

    Raises:
        DataError: no records, or none left to train on.
        RecipeError: a share that is neither a percentage below 100 nor a number of records.
    """
    if not records:
        raise DataError("The training data is empty: no record in it can be used.")
    kept = unique(records) if deduplicate else list(records)
    groups = near_duplicates(kept)
    hashes = [content_hash(record) for record in kept]
    keys = []
    for group in groups:
        keys.append(min(hashes[index] for index in group))
    split_of = divide(keys, groups, validation, test, seed)
    parts: Mapping[str, list[Record]] = defaultdict(list)
    for index, record in enumerate(kept):
        parts[split_of.get(index, "train")].append(record)
    sizes = sorted((len(group) for group in groups if len(group) > 1), reverse=True)
    return Split(parts["train"], parts["validation"], parts["test"], len(records) - len(kept), sizes)


def divide(
    keys: Sequence[str],
    groups: Sequence[list[int]],
    validation: str | int | None,
    test: str | int | None,
    seed: int,
) -> dict[int, str]:
    """Index → `test` or `validation`; indices that are missing train. The key of a group alone decides its split.

    Args:
        keys: key of each group, the smallest content hash of its records.
        groups: indices of the records of each group, which go to one split.
        validation: "10%", a number of records, or None.
        test: the same.
        seed: each seed gives another division.

    Raises:
        DataError: no record is left to train on.
    """
    ordered = sorted((_position(key, seed), group) for key, group in zip(keys, groups, strict=True))
    split_of: dict[int, str] = {}
    test_end = _assign(ordered, test, "test", 0.0, split_of)
    _assign(ordered, validation, "validation", test_end, split_of)
    total, names = sum(len(group) for group in groups), list(split_of.values())
    if len(names) == total:
        raise DataError(
            f"Of {total} records {names.count('test')} go to test and {names.count('validation')} to validation: "
            "none is left to train on.",
            "Lower `data.test` or `data.validation`, or bring more records.",
        )
    return split_of


def unique(records: Sequence[Record]) -> list[Record]:
    """The first of each set of records with identical content."""
    first: dict[str, Record] = {}
    for record in records:
        first.setdefault(content_hash(record), record)
    return list(first.values())


def share(setting: str | int | None, name: str) -> float | int:
    """A share as a fraction (float, below 1) or a number of records (int); None is 0.

    Raises:
        RecipeError: the setting is neither a percentage below 100 nor a number of records.
    """
    if setting is None:
        return 0
    if isinstance(setting, int) and not isinstance(setting, bool) and setting >= 0:
        return setting
    match = PERCENT.fullmatch(setting.strip()) if isinstance(setting, str) else None
    if match is None or float(match[1]) >= 100:
        raise RecipeError(f"data.{name}: `{setting}` is no share of the data.", 'Write "10%" or a number of records.')
    return float(match[1]) / 100


def is_share(setting: object) -> bool:
    """Whether a setting is a share of the training source rather than a source of its own."""
    if isinstance(setting, str):
        return PERCENT.fullmatch(setting) is not None
    return setting is None or isinstance(setting, int)


def _position(key: str, seed: int) -> float:
    """A number in [0, 1) that the seed and the key of a group decide."""
    return sha256_number(f"{seed}:{key}", 7) / 2**56


def _assign(
    ordered: list[tuple[float, list[int]]], setting: str | int | None, name: str, start: float, split_of: dict[int, str]
) -> float:
    """Assign groups to the split `name`: those with a position in [start, end) for a percentage, the first for a count.

    Returns:
        The end of the interval, which is `start` for a count.
    """
    wanted = share(setting, name)
    free = [(position, group) for position, group in ordered if group[0] not in split_of]
    if isinstance(wanted, int):
        missing = wanted
        for _, group in free:
            # A group that is too large is passed over rather than divided: near-duplicates stay together.
            if len(group) <= missing:
                split_of.update(dict.fromkeys(group, name))
                missing -= len(group)
        return start
    end = start + wanted
    chosen = [group for position, group in free if start <= position < end]
    if not chosen and len(ordered) >= 3:
        # A small data set would otherwise lose the split by chance.
        chosen = [group for _, group in free[:1]]
    for group in chosen:
        split_of.update(dict.fromkeys(group, name))
    return end
