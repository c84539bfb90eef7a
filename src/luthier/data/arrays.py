"""Records of arrays, such as cached latents with conditions or pictures with captions: read, divided, checked."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy

from luthier.data.prepare import SPLITS, DataSettings, Prepared, Source, split_settings
from luthier.data.report import DataReport
from luthier.data.split import divide
from luthier.errors import DataError, nearest
from luthier.parts import build
from luthier.types import Row, Stream

SUFFIXES = (".safetensors", ".npz")


def load_rows(source: Source, base: Path) -> list[Row]:
    """The rows of a source, without tokens: each array is a row stream, and the hash of the content is the id.

    Args:
        source: a `.safetensors` or `.npz` file of arrays whose first axis are the records (`columns` renames arrays,
            `limit` keeps some records), or `{kind: <dataset part>, ...}` of a part with `rows()`.
        base: folder that relative paths start from.

    Raises:
        DataError: a missing or unreadable file, arrays of different lengths, no record.
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
        described = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "nothing"
        raise DataError(f"{path.name}: every array needs the same number of records (first axis); found {described}.")
    rows = []
    for index in range(lengths.popitem()[1]):
        rows.append(_row({name: values[index] for name, values in arrays.items()}))
    limit = spec.get("limit")
    if limit is None or limit >= len(rows):
        return rows
    # By content hash: a smaller limit keeps a subset of a larger one, whatever the order of the file.
    return sorted(rows, key=lambda row: row.id)[:limit]


def _read(path: Path) -> dict[str, numpy.ndarray]:
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: this model reads arrays, and a `{path.suffix}` file holds none.", f"Use {_files()}.")
    if not path.is_file():
        raise DataError(f"There is no file {path}.", "Relative paths start from the recipe's folder.")
    try:
        if path.suffix == ".npz":
            with numpy.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        from safetensors.torch import load_file

        arrays = {}
        for name, values in load_file(path).items():
            arrays[name] = (values.float() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
        return arrays
    except Exception as error:  # three libraries, each with errors of its own
        raise DataError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from None


def _files() -> str:
    return f"a file of arrays ({', '.join(SUFFIXES)}) or a data set that draws pictures (`digits`)"


def _renamed(arrays: dict[str, numpy.ndarray], columns: Mapping[str, Any], path: Path) -> dict[str, numpy.ndarray]:
    """The arrays under the names of Luthier; `columns` maps these to the names in the file."""
    for ours, theirs in columns.items():
        if not isinstance(theirs, str):
            raise DataError(f"{path.name}: `columns` joins several into {ours}; arrays are not joined.")
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
    """Hex digest of all arrays of a row, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name in sorted(row.streams):
        values = numpy.ascontiguousarray(row.streams[name].values)
        digest.update(f"{name} {values.dtype} {values.shape} ".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def prepare_rows(settings: DataSettings, base: Path) -> Prepared:
    """Read and divide the arrays of a recipe's `data:` block; `data.deduplicate` drops exact copies.

    Raises:
        DataError: as `load_rows`; records with different arrays, shapes or types; numbers that are not finite; no
            record left to train on.
    """
    sources, shares = split_settings(settings)
    read = load_rows(settings.train, base)
    kept = _unique(read, settings.deduplicate)
    hashes = [content_hash(row) for row in kept]
    split_of = divide(hashes, [[index] for index in range(len(kept))], **shares, seed=settings.split_seed)
    split: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for index, row in enumerate(kept):
        split[split_of.get(index, "train")].append(row)
    count, leakage = len(read), {}
    for name, source in sources.items():
        rows = _unique(load_rows(source, base), settings.deduplicate)
        # A row of train may have the same content, and with it the same id: the name of the split tells them apart.
        split[name] = [replace(row, id=f"{name}/{row.id}", record="") for row in rows]
        count += len(rows)
        copies = [row.id for row in split[name] if content_hash(row) in hashes]
        leakage[name] = {"exact": len(copies), "near": 0, "examples": copies[:3]}
    _require_equal_arrays([*chain.from_iterable(split.values())])
    report = DataReport(
        read=count,
        counts={name: len(rows) for name, rows in split.items()},
        shapes={"arrays": sum(map(len, split.values()))},
        duplicates=len(read) - len(kept),
        tokens=sum(map(len, split["train"])),
        leakage=leakage,
    )
    splits = {}
    for name, rows in split.items():
        splits[name] = [row.id for row in rows]
    return Prepared(split["train"], split["validation"], split["test"], {}, splits, report)


def _unique(rows: Sequence[Row], deduplicate: bool) -> list[Row]:
    """The first of identical rows if `deduplicate`, else all rows, copies under ids of their own."""
    counts: Counter[str] = Counter()
    kept = []
    for row in rows:
        counts[row.id] += 1
        if counts[row.id] == 1:
            kept.append(row)
        elif not deduplicate:
            kept.append(replace(row, id=f"{row.id}-{counts[row.id]}", record=""))
    return kept


def _require_equal_arrays(rows: Sequence[Row]) -> None:
    """Raise DataError if a record has other arrays or shapes than the first, or numbers that are not finite."""
    expected = _shapes(rows[0])
    for row in rows:
        if (shapes := _shapes(row)) != expected:
            raise DataError(f"Record {row.id} holds {_listed(shapes)}; record {rows[0].id} {_listed(expected)}.")
        for name, stream in row.streams.items():
            if not numpy.isfinite(stream.values).all():
                raise DataError(f"Record {row.id}: `{name}` holds numbers that are not finite.")


def _shapes(row: Row) -> dict[str, tuple[int, ...]]:
    return {name: numpy.shape(stream.values) for name, stream in sorted(row.streams.items())}


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" if shape else name for name, shape in shapes.items())


def arrays_of(rows: Sequence[Row]) -> str:
    """The names and shapes of the arrays of the rows, all of which have the same: `label, latent [4, 8, 8]`."""
    return _listed(_shapes(rows[0]))
