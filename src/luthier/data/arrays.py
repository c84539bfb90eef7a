"""Records that are arrays: cached latents with their conditions, pictures with captions. Read, divided, checked."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy

from luthier.data.prepare import SPLITS, DataSettings, Prepared, Source
from luthier.data.report import DataReport
from luthier.data.split import divide, is_share
from luthier.errors import DataError, nearest
from luthier.parts import build
from luthier.types import Row, Stream

SUFFIXES = (".safetensors", ".npz")


def load_rows(source: Source, base: Path) -> list[Row]:
    """The rows of a source: one row stream for each of its arrays, no tokens; called by the hash of their content.

    Args:
        source: a `.safetensors` or `.npz` file of arrays with one first axis, the records (`columns` renames them,
            `limit` takes some), or `{kind: <dataset part>, ...}` of a part with `rows()`.
        base: folder that relative paths start from.

    Raises:
        DataError: no such file, arrays of different lengths, numbers that are not finite, no record.
    """
    spec: dict[str, Any] = {"path": source} if isinstance(source, str) else dict(source)
    if "kind" in spec:
        part = build("dataset", spec, base)
        if not hasattr(part, "rows"):
            raise DataError(f"The data set `{part.kind}` holds text; this model reads arrays.", f"Use {_files()}.")
        return list(part.rows())
    path = Path(spec["path"]).expanduser()
    path = path if path.is_absolute() else base / path
    arrays = _renamed(_read(path), spec.get("columns") or {}, path)
    lengths = {name: len(values) if values.ndim else 0 for name, values in arrays.items()}
    if not arrays or len(set(lengths.values())) > 1 or not min(lengths.values()):
        found = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "nothing"
        raise DataError(f"{path.name}: every array needs the same number of records (first axis); found {found}.")
    rows = [_row({name: values[index] for name, values in arrays.items()}) for index in range(lengths.popitem()[1])]
    limit = spec.get("limit")
    if limit is None or limit >= len(rows):
        return rows
    return [rows[index] for index in sorted(range(len(rows)), key=lambda index: rows[index].id)[:limit]]


def _read(path: Path) -> dict[str, numpy.ndarray]:
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: this model reads arrays, and `{path.suffix}` is no file of them.", f"Use {_files()}.")
    if not path.is_file():
        raise DataError(f"There is no file {path}.", "Relative paths start from the recipe's folder.")
    try:
        if path.suffix == ".npz":
            with numpy.load(path, allow_pickle=False) as held:
                return {name: held[name] for name in held.files}
        from safetensors.torch import load_file

        return {
            name: (values.float() if values.is_floating_point() else values).numpy()
            for name, values in load_file(path).items()
        }
    except Exception as error:  # three libraries, each with errors of its own
        raise DataError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from None


def _files() -> str:
    return f"a file of arrays ({', '.join(SUFFIXES)}) or a data set that draws pictures (`digits`)"


def _renamed(arrays: dict[str, numpy.ndarray], columns: Mapping[str, str], path: Path) -> dict[str, numpy.ndarray]:
    """The arrays under our names; `columns` says which of theirs each is."""
    for ours, theirs in columns.items():
        if theirs not in arrays:
            close = nearest(theirs, list(arrays))
            hint = f"Did you mean `{close}`?" if close else f"It has: {', '.join(arrays)}."
            raise DataError(f"{path.name} has no array `{theirs}` (data columns: {ours}).", hint)
    other = {theirs: ours for ours, theirs in columns.items()}
    return {other.get(name, name): values for name, values in arrays.items()}


def _row(arrays: Mapping[str, numpy.ndarray]) -> Row:
    streams = {}
    for name, values in arrays.items():
        values = values.astype(numpy.float32 if values.dtype.kind == "f" else numpy.int64)
        streams[name] = Stream(values if values.ndim else values[()], "row")
    row = Row("", numpy.zeros(0, dtype=numpy.int32), streams)
    return replace(row, id=content_hash(row)[:16], record="")


def content_hash(row: Row) -> str:
    """Hex digest of all arrays of a row, with their names and shapes."""
    digest = hashlib.sha256()
    for name in sorted(row.streams):
        values = numpy.ascontiguousarray(row.streams[name].values)
        digest.update(f"{name} {values.dtype} {values.shape} ".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def prepare_rows(settings: DataSettings, base: Path) -> Prepared:
    """Read and divide the arrays of a recipe's `data:` block; exact copies are dropped if it says so.

    Raises:
        DataError: as `load_rows`, records of different make, or none left to train on.
    """
    own = {name: value for name in SPLITS[1:] if not is_share(value := getattr(settings, name))}
    read = load_rows(settings.train, base)
    kept = _unique(read, settings.deduplicate)
    shares = {name: None if name in own else getattr(settings, name) for name in SPLITS[1:]}
    hashes = [content_hash(row) for row in kept]
    taken = divide(hashes, [[index] for index in range(len(kept))], **shares, seed=settings.split_seed)
    split: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for index, row in enumerate(kept):
        split[taken.get(index, "train")].append(row)
    count, leakage = len(read), {}
    for name, source in own.items():
        rows = _unique(load_rows(source, base), settings.deduplicate)
        split[name] = [replace(row, id=f"{name}/{row.id}", record="") for row in rows]
        count += len(rows)
        copies = [row.id for row in split[name] if content_hash(row) in hashes]
        leakage[name] = {"exact": len(copies), "near": 0, "examples": copies[:3]}
    _require_one_make([row for rows in split.values() for row in rows])
    report = DataReport(
        read=count,
        counts={name: len(rows) for name, rows in split.items()},
        shapes={"arrays": sum(map(len, split.values()))},
        duplicates=len(read) - len(kept),
        tokens=sum(map(len, split["train"])),
        leakage=leakage,
    )
    splits = {name: [row.id for row in rows] for name, rows in split.items()}
    return Prepared(split["train"], split["validation"], split["test"], {}, splits, report)


def _unique(rows: Sequence[Row], deduplicate: bool) -> list[Row]:
    """The first of identical rows, or all of them under names of their own."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row.id] += 1
        if seen[row.id] == 1:
            kept.append(row)
        elif not deduplicate:
            kept.append(replace(row, id=f"{row.id}-{seen[row.id]}", record=""))
    return kept


def _require_one_make(rows: Sequence[Row]) -> None:
    """Raise DataError where a record has other arrays, shapes or types than the first, or is not finite."""
    wanted = _make(rows[0])
    for row in rows:
        if (found := _make(row)) != wanted:
            raise DataError(f"Record {row.id} holds {told(found)}; record {rows[0].id} {told(wanted)}.")
        for name, stream in row.streams.items():
            if not numpy.isfinite(stream.values).all():
                raise DataError(f"Record {row.id}: `{name}` holds numbers that are not finite.")


def _make(row: Row) -> dict[str, tuple[int, ...]]:
    return {name: numpy.shape(stream.values) for name, stream in sorted(row.streams.items())}


def told(make: Mapping[str, tuple[int, ...]]) -> str:
    """Arrays and their shapes in words: latent [4, 8, 8], label."""
    return ", ".join(f"{name} {list(shape)}" if shape else name for name, shape in make.items())


def arrays_of(rows: Sequence[Row]) -> str:
    """What each of the rows holds, in words."""
    return told(_make(rows[0]))
