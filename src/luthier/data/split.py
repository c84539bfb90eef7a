"""The split of records into training, validation and test, by their content, with related records together.

A percentage assigns every group of related records by the hash of its content alone, so a record added later
moves no other. A count takes the groups with the smallest hashes.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from luthier.data.groups import FEW, LARGEST, Grouping, group_records, with_groups
from luthier.data.identity import identities
from luthier.data.words import WordHashes, words_of
from luthier.errors import DataError, RecipeError
from luthier.keyed import sha256_number
from luthier.types import Record

PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%")


@dataclass(frozen=True)
class Split:
    """Records by split, each with the id of its group.

    Attributes:
        duplicates: number of exact copies of another record, whether they are removed or not.
        groups: sizes (> 1) of the groups of related records, the largest first.
        chains: by id of a record, the numbers of its chains (`Grouping.near`, `Grouping.parts`), in whatever split.
        words: by id of a record, its words.
        notes: sentences on groups that the split could not follow, or that made it uneven.
    """

    train: list[Record]
    validation: list[Record]
    test: list[Record]
    duplicates: int
    groups: list[int]
    chains: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    words: Mapping[str, WordHashes] = field(default_factory=dict)
    notes: Sequence[str] = ()


def split_records(
    records: Sequence[Record],
    validation: str | int | None,
    test: str | int | None,
    *,
    seed: int = 0,
    deduplicate: bool = True,
    columns: Sequence[str] = (),
    prompt_columns: Sequence[str] = (),
    group: str | None = None,
) -> Split:
    """Divide records by content.

    Args:
        records: all records; their order has no influence on the split of any of them.
        validation: "10%", a number of records, or None for none.
        test: the same; test records are assigned first, so a change of `validation` leaves them alone.
        seed: each seed gives another division.
        deduplicate: drop all but the first of identical records.
        columns: columns that a recipe reads besides the content, as `content_hash` has them.
        prompt_columns: those of them that the prompt holds.
        group: a column by which records stay together.

    Raises:
        DataError: no records, or none left to train on; no record has the column `group`.
        RecipeError: a share that is neither a percentage below 100 nor a number of records.
    """
    if not records:
        raise DataError("The training data is empty: no record in it can be used.")
    names = identities(records, columns)
    firsts = _firsts(names)
    indices = firsts if deduplicate else range(len(records))
    kept, names = [records[index] for index in indices], [names[index] for index in indices]
    words = words_of(kept, prompt_columns)
    grouping = group_records(kept, words, group)
    keys = [min(names[index] for index in members) for members in grouping.groups]
    split_of = divide(keys, grouping.groups, validation, test, seed)
    parts: Mapping[str, list[Record]] = defaultdict(list)
    for index, record in enumerate(with_groups(kept, grouping)):
        parts[split_of.get(index, "train")].append(record)
    sizes = sorted((len(members) for members in grouping.groups if len(members) > 1), reverse=True)
    ids = [record.id for record in kept]
    asked = {"test": test, "validation": validation}
    return Split(
        parts["train"],
        parts["validation"],
        parts["test"],
        len(records) - len(firsts),
        sizes,
        dict(zip(ids, zip(grouping.near, grouping.parts, strict=True), strict=True)),
        dict(zip(ids, words, strict=True)),
        _notes(asked, {name: len(parts[name]) for name in asked}, len(kept), sizes, grouping),
    )


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


def _firsts(names: Sequence[str]) -> list[int]:
    """The index of the first of each set of equal names."""
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        first.setdefault(name, index)
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
            # A group that is too large is passed over rather than divided: related records stay together.
            if len(group) <= missing:
                split_of.update(dict.fromkeys(group, name))
                missing -= len(group)
        return start
    end = start + wanted
    total = sum(len(group) for _, group in ordered)
    # A group that alone is more than the share trains: which one it is would be a matter of chance.
    most = max(FEW, LARGEST * total, wanted * total)
    fitting = [(position, group) for position, group in free if len(group) <= most]
    chosen = [group for position, group in fitting if start <= position < end]
    if not chosen and len(ordered) >= 3 and wanted:
        # A small data set, or one of a few large groups, would otherwise lose the split by chance.
        fallback = fitting or sorted(free, key=lambda entry: (len(entry[1]), entry[0]))
        chosen = [group for _, group in fallback[:1]]
    for group in chosen:
        split_of.update(dict.fromkeys(group, name))
    return end


def _notes(
    asked: Mapping[str, str | int | None], got: Mapping[str, int], total: int, sizes: Sequence[int], grouping: Grouping
) -> list[str]:
    """Sentences on splits that are empty or far from what was asked, and on chains that were divided."""
    notes = []
    for name, setting in asked.items():
        wanted = share(setting, name)
        goal = wanted if isinstance(wanted, int) else wanted * total
        if (goal >= 1 or sizes) and goal and _is_far(got[name], goal, total, counted=isinstance(wanted, int)):
            largest = sizes[0] if sizes else 1
            notes.append(
                f"data.{name} asks for {setting} ({goal:.0f} of {total} records) and gets {got[name]}: records that"
                f" belong together stay on one side, and the largest group has {largest} ({largest / total:.0%}). Name"
                f" a source of its own in `data.{name}`, or bring records of more conversations or documents."
            )
    if grouping.divided:
        notes.append(
            f"{grouping.divided} of {total} records form chains of near-duplicates or shared passages of more than"
            f" {LARGEST:.0%} of all records each, as a template gives them: of these only records with the same"
            " question stay on one side."
        )
    return notes


def _is_far(got: int, goal: float, total: int, counted: bool) -> bool:
    """Whether a split is empty, or further from its goal than chance explains where every record is alone."""
    if counted or not got:
        return got != goal
    deviation = (goal * (1 - goal / total)) ** 0.5
    return not goal / 2 <= got <= 2 * goal and abs(got - goal) > 3 * deviation
