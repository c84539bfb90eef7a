"""Sources of records: local files and folders, generated data sets, the hub. Every error names file and line."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import has_magic, iglob
from itertools import chain, islice
from pathlib import Path
from typing import Any

from luthier.data.files import Line, NotUtf8, Reports, SourceError, read_file, suffix_of
from luthier.data.identity import assign_ids, content_hash
from luthier.data.shapes import NumberForText, UnknownShape, make_record
from luthier.errors import DataError, LuthierError, RecipeError, nearest
from luthier.parts import build, catalogue
from luthier.records.guess import SAMPLE, Guess, guess
from luthier.records.nulls import ColumnarRow
from luthier.types import Record

__all__ = ["EmptySource", "NotUtf8", "Scan", "files_of", "load_records", "scan", "scan_records"]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
SOURCE_KEYS = ("path", "columns", "limit", "split", "config")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
SPLIT_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation"} | {
    "dev": "validation",
    "test": "test",
    "eval": "test",
}
"""Word in the name of a file or folder → the split that it holds."""
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}


class EmptySource(DataError):
    """A source without a record that can be used."""


@dataclass
class Scan:
    """All that a source holds.

    Attributes:
        records: those that can be used.
        problems: the error of every line that cannot.
        notes: what was taken for granted when the files were read.
        guess: the columns that records of unknown shape probably mean; None where all shapes are known.
    """

    records: list[Record] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    guess: Guess | None = None


def load_records(source: Mapping[str, Any] | str | list[str], base: Path, columns: Sequence[str] = ()) -> list[Record]:
    """Read all records of a source.

    Args:
        source: a path, several paths, a hub id, `{path, columns, limit, split, config}` or `{kind: <part>, ...}`.
        base: folder that relative paths start from (the recipe's).
        columns: columns that a recipe reads besides the content; they tell records apart.

    Raises:
        DataError: the first line that cannot be used, with file and line, or a source without records.
        RecipeError: an unknown key of the source.
    """

    def stop(error: DataError) -> None:
        raise error

    try:
        return _load(source, base, columns, Reports(stop, lambda note: None))
    except UnknownShape as error:
        _advise(error, _guessed(_spec(source), base, error.row))
        raise


def scan(source: Mapping[str, Any] | str | list[str], base: Path, columns: Sequence[str] = ()) -> Scan:
    """All records of a source that can be used, and what is wrong with the others."""
    scanned, unknown = Scan(), _Sample()

    def listed(error: DataError) -> None:
        scanned.problems.append(error)
        if isinstance(error, UnknownShape):
            unknown.add(error.row)
            error.row = {}  # a million refused lines are not held

    try:
        scanned.records = _load(source, base, columns, Reports(listed, scanned.notes.append))
    except EmptySource as error:
        if not scanned.problems:  # else the errors of all lines already say why no record is left
            scanned.problems.append(error)
    except DataError as error:
        scanned.problems.append(error)
    if unknown.rows:
        scanned.guess = _that_fits(guess(unknown.rows), scanned.records)
        for error in scanned.problems:
            if isinstance(error, UnknownShape):
                _advise(error, scanned.guess)
    return scanned


def _that_fits(guessed: Guess, records: Sequence[Record]) -> Guess:
    """The guess without its columns if the records that can be read already could not be read by them."""
    named = [[theirs] if isinstance(theirs, str) else theirs for theirs in guessed.columns.values()]
    unread = sum(not all(name in record.fields for name in chain.from_iterable(named)) for record in records)
    if guessed.columns.keys() & {"role", "content"} or not unread:
        return guessed
    reason = f"they would fit these records and not the {unread} that are read already"
    return replace(guessed, columns={}, reason=reason)


def _advise(error: UnknownShape, guessed: Guess) -> None:
    """Give the error the hint of a guess; a number for text keeps its own where nothing is offered."""
    if guessed.columns or not isinstance(error, NumberForText):
        error.hint = guessed.hint


def scan_records(
    source: Mapping[str, Any] | str, base: Path, columns: Sequence[str] = ()
) -> tuple[list[Record], list[DataError]]:
    """All records of a source that can be used, and the error of every line that cannot."""
    scanned = scan(source, base, columns)
    return scanned.records, scanned.problems


def files_of(source: Mapping[str, Any], base: Path) -> list[Path]:
    """The local files that a source reads; an empty list for a hub data set, a generated one or a missing file."""
    files: list[Path] = []
    for written in _paths(source) if "path" in source else ():
        try:
            paths = _local(written, base, source.get("split"), lambda note: None)
        except DataError:
            continue
        for path in paths:
            files += [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else [path]
    return files


def _spec(source: Mapping[str, Any] | str | list[str]) -> dict[str, Any]:
    return dict(source) if isinstance(source, Mapping) else {"path": source}


def _load(
    source: Mapping[str, Any] | str | list[str], base: Path, read: Sequence[str], reports: Reports
) -> list[Record]:
    spec = _spec(source)
    if "kind" in spec:
        part = build("dataset", spec, base)
        if not hasattr(part, "records"):
            raise DataError(f"The data set `{part.kind}` holds arrays; a language model reads text.")
        records = part.records()
        return assign_ids(records, read) if any(not record.id for record in records) else list(records)
    _check_keys(spec)
    columns, kept = spec.get("columns") or {}, _Kept(spec.get("limit"), read)
    for origin, row in _lines(spec, base, reports):
        try:
            kept.add(make_record(row, columns, origin))
        except DataError as error:
            error.origin = origin
            reports.fail(error)
    if not kept.count:
        raise EmptySource(f"{', '.join(_paths(spec))}: the data set is empty: no record in it can be used.")
    return kept.identified()


def _guessed(spec: Mapping[str, Any], base: Path, refused: Mapping[str, Any]) -> Guess:
    """The guess from the record that was refused and the first others of unknown shape."""
    rows = [refused]
    for origin, row in islice(_lines(spec, base, Reports(lambda error: None, lambda note: None)), 10 * SAMPLE):
        try:
            make_record(row, spec.get("columns") or {}, origin)
        except UnknownShape as error:
            rows.append(error.row)
        except DataError:
            continue
    return guess(rows)


class _Sample:
    """At most SAMPLE rows of any number, each as likely as the others: files are often sorted."""

    def __init__(self):
        self.rows: list[Mapping[str, Any]] = []
        self._count = 0
        self._random = random.Random(0)

    def add(self, row: Mapping[str, Any]) -> None:
        self._count += 1
        if len(self.rows) < SAMPLE:
            self.rows.append(row)
        elif (position := self._random.randrange(self._count)) < SAMPLE:
            self.rows[position] = row


class _Kept:
    """The records with the smallest content hashes, in file order: a smaller limit keeps a subset of a larger one.

    No more than a few times `limit` records are held while a file is read.
    """

    def __init__(self, limit: int | None, read: Sequence[str] = ()):
        self.limit, self.count, self.read = limit, 0, read
        self._records: list[Record] = []
        self._ranked: list[tuple[str, int, Record]] = []
        self._own_ids: set[str] = set()

    def add(self, record: Record) -> None:
        self.count += 1
        if self.limit is None:
            self._records.append(record)
            return
        self._own_ids.add(str(record.fields.get("id", "")))
        # By the content first: what another recipe reads besides moves no record.
        rank = content_hash(record) + (content_hash(record, self.read) if self.read else "")
        self._ranked.append((rank, self.count, record))
        if len(self._ranked) > 2 * self.limit + 1000:
            self._forget()

    def _forget(self) -> None:
        self._ranked = sorted(self._ranked, key=lambda ranked: ranked[:2])[: self.limit]

    def identified(self) -> list[Record]:
        """The kept records with their ids, which do not depend on the limit."""
        if self.limit is None:
            return assign_ids(self._records, self.read)
        self._forget()
        records = [record for _, _, record in sorted(self._ranked, key=lambda ranked: ranked[1])]
        if len(self._own_ids) == self.count:
            return assign_ids(records, self.read)
        # Ids that repeat somewhere in the file are no ids, even if those of the kept records differ: one record twice
        # shows it.
        return assign_ids([*records, records[0]], self.read)[:-1]


def _check_keys(spec: Mapping[str, Any]) -> None:
    for key in spec:
        if key not in SOURCE_KEYS:
            close = nearest(str(key), SOURCE_KEYS)
            hint = f"Did you mean `{close}`?" if close else f"A source has: {', '.join(SOURCE_KEYS)}."
            raise RecipeError(f"A data source has no key `{key}`.", hint)
    paths = spec.get("path")
    several = isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths)
    if not several and not isinstance(paths, str):
        raise RecipeError("A data source needs `path` (a file or a hub id) or `kind` (a generated data set).")


def _paths(spec: Mapping[str, Any]) -> list[str]:
    return [spec["path"]] if isinstance(spec["path"], str) else list(spec["path"])


def _lines(spec: Mapping[str, Any], base: Path, reports: Reports) -> Iterator[Line]:
    split, sources = spec.get("split"), []
    for written in _paths(spec):
        path = _absolute(written, base)
        if path.exists() or has_magic(written) or not HUB_ID.fullmatch(written) or suffix_of(path) in SUFFIXES:
            sources += _local(written, base, split, reports.note)
        else:
            sources.append(written)
    names = [source.name for source in sources if isinstance(source, Path)]
    for source in sources:
        if isinstance(source, str):
            yield from _hub_lines(source, spec)
        elif source.is_dir():
            yield from _saved_lines(source, split)
        else:
            # Shards of several folders may have one name.
            label = source.name if names.count(source.name) == 1 else os.path.relpath(source, base)
            yield from read_file(source, label, split, reports)


def _absolute(written: str, base: Path) -> Path:
    path = Path(written).expanduser()
    return path if path.is_absolute() else base / path


def _local(written: str, base: Path, split: str | None, note: Callable[[str], None]) -> list[Path]:
    """The files of a path: itself, those that match its `*`, or those in the folder; a folder of `save_to_disk`."""
    path = _absolute(written, base)
    if path.is_file():
        return [path]
    if path.is_dir():
        return [path] if _is_saved(path) else _in_folder(path, split, note)
    if has_magic(written):
        matches = sorted(Path(match) for match in iglob(str(path), recursive=True) if Path(match).is_file())
        if matches:
            return matches
        raise SourceError(f"No file matches {path}.", "Relative paths start from the recipe's folder.")
    raise SourceError(f"There is no file {path}.", _file_hint(written, path))


def _in_folder(folder: Path, split: str | None, note: Callable[[str], None]) -> list[Path]:
    """The data files in a folder: those of the split, or, without one, those of `train` or of no split."""
    files = []
    for path in sorted(folder.rglob("*")):
        hidden = any(piece.startswith((".", "_")) for piece in path.relative_to(folder).parts)
        if path.is_file() and not hidden and path.name not in DESCRIPTIONS and suffix_of(path) in SUFFIXES:
            files.append(path)
    if not files:
        raise SourceError(
            f"{folder} is a folder without a data file.", f"Data files end in {', '.join(SUFFIXES)}, also in .gz."
        )
    by_split: dict[str, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    wanted = split or "train"
    chosen = by_split.get(wanted) or by_split.get(SPLIT_NAMES.get(wanted, ""))
    if chosen is None and split is None and set(by_split) == {""}:
        chosen = files
    if chosen is None:
        names = ", ".join(f"`{name}`" for name in by_split if name) or "none"
        raise SourceError(f"{folder} has no files of the split `{wanted}`.", f"Splits by the names of files: {names}.")
    formats = sorted({suffix_of(path) for path in chosen})
    if len(formats) > 1:
        raise SourceError(
            f"{folder} holds files of several formats ({', '.join(formats)}), which may be the same records.",
            f"Name those that are meant, such as `{folder.name}/*{formats[0]}`.",
        )
    if others := sorted({*by_split} - {"", wanted}):
        note(
            f"{folder.name} also holds files of the split {' and '.join(others)}, which were not read here: "
            f"`data.{others[-1]}: {{path: {folder.name}, split: {others[-1]}}}` uses them"
        )
    return chosen


def _split_of(path: Path) -> str:
    """The split that a path within a folder names, such as `data/train-00000-of-00002.parquet`; empty without one."""
    words = re.split(r"[^a-z]+", str(path.with_suffix("")).lower())
    return next((SPLIT_NAMES[word] for word in reversed(words) if word in SPLIT_NAMES), "")


def _is_saved(folder: Path) -> bool:
    """Whether datasets' `save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _saved_lines(folder: Path, split: str | None) -> Iterator[Line]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises dozens of types for a folder that it cannot read
        raise SourceError(f"{folder} cannot be read as a saved data set: {_described(error)}") from None
    if isinstance(saved, datasets.DatasetDict):
        name = split or ("train" if "train" in saved or len(saved) > 1 else next(iter(saved), "train"))
        if name not in saved:
            raise SourceError(f"{folder} has no split `{name}`.", f"It has {', '.join(map(str, saved)) or 'none'}.")
        saved = saved[name]
    for number, row in enumerate(saved, 1):
        yield f"{folder.name}[{number}]", ColumnarRow(row)


def _file_hint(written: str, path: Path) -> str:
    """A hint with the nearest name: of a bundled data set, or of a file in the same folder."""
    neighbours = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    bundled = [] if path.suffix else [entry.name for entry in catalogue("dataset")]
    if close := nearest(written, bundled):
        return f"Did you mean the bundled data set `{close}`?"
    close = nearest(path.name, neighbours)
    return f"Did you mean {path.parent / close}?" if close else "Relative paths start from the recipe's folder."


def _hub_lines(name: str, spec: Mapping[str, Any]) -> Iterator[Line]:
    import datasets

    split = spec.get("split") or "train"
    try:
        rows = datasets.load_dataset(name, spec.get("config"), split=split)
    except LuthierError:
        raise
    except Exception as error:  # the library raises dozens of types for a data set that does not exist
        raise SourceError(
            f"There is no file `{name}`, and it cannot be fetched as a data set of the hub: {_described(error)}",
            "Check the path, or the id, `config:` and `split:` of the data set and the network.",
        ) from None
    for number, row in enumerate(rows, 1):
        yield f"{name}:{split}[{number}]", ColumnarRow(row)


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
