"""Sources of records: local files, generated data sets, the hub. Every error names file and line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.data.identity import assign_ids, identities
from luthier.data.shapes import make_record
from luthier.errors import DataError, LuthierError, RecipeError, nearest
from luthier.parts import build, catalogue
from luthier.records.nulls import ColumnarRow
from luthier.types import Record

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
SOURCE_KEYS = ("path", "columns", "limit", "split", "config")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

Fail = Callable[[DataError], None]
Line = tuple[str, Any]  # origin ("data.jsonl:12") and the object in that line


class NotUtf8(DataError):
    """Bytes that are not UTF-8; the doctor counts these errors separately."""


class EmptySource(DataError):
    """A source without a record that can be used."""


def load_records(source: Mapping[str, Any] | str, base: Path, columns: Sequence[str] = ()) -> list[Record]:
    """Read all records of a source.

    Args:
        source: a path, a hub id, `{path, columns, limit, split, config}` or `{kind: <dataset part>, ...}`.
        base: folder that relative paths start from (the recipe's).
        columns: columns that a recipe reads besides the content; they tell records apart.

    Raises:
        DataError: the first line that cannot be used, with file and line, or a source without records.
        RecipeError: an unknown key of the source.
    """

    def stop(error: DataError) -> None:
        raise error

    return _load(source, base, columns, stop)


def scan_records(
    source: Mapping[str, Any] | str, base: Path, columns: Sequence[str] = ()
) -> tuple[list[Record], list[DataError]]:
    """All records of a source that can be used, and the error of every line that cannot."""
    problems: list[DataError] = []
    try:
        return _load(source, base, columns, problems.append), problems
    except EmptySource as error:
        return [], problems or [error]  # the errors of all lines already say why no record is left
    except DataError as error:
        return [], [*problems, error]


def _load(source: Mapping[str, Any] | str, base: Path, read: Sequence[str], fail: Fail) -> list[Record]:
    spec: dict[str, Any] = {"path": source} if isinstance(source, str) else dict(source)
    if "kind" in spec:
        part = build("dataset", spec, base)
        if not hasattr(part, "records"):
            raise DataError(f"The data set `{part.kind}` holds arrays; a language model reads text.")
        records = part.records()
        return assign_ids(records, read) if any(not record.id for record in records) else list(records)
    _check_keys(spec)
    columns = spec.get("columns") or {}
    records = []
    for origin, row in _lines(spec, base, fail):
        try:
            records.append(make_record(row, columns, origin))
        except DataError as error:
            fail(error)
    if not records:
        raise EmptySource(f"{spec['path']}: the data set is empty: no record in it can be used.")
    return _limited(assign_ids(records, read), spec.get("limit"), read)


def _check_keys(spec: Mapping[str, Any]) -> None:
    for key in spec:
        if key not in SOURCE_KEYS:
            close = nearest(str(key), SOURCE_KEYS)
            hint = f"Did you mean `{close}`?" if close else f"A source has: {', '.join(SOURCE_KEYS)}."
            raise RecipeError(f"A data source has no key `{key}`.", hint)
    if not isinstance(spec.get("path"), str):
        raise RecipeError("A data source needs `path` (a file or a hub id) or `kind` (a generated data set).")


def _limited(records: list[Record], limit: int | None, read: Sequence[str]) -> list[Record]:
    """The `limit` records with the smallest identity, in file order: a smaller limit keeps a subset of a larger."""
    if limit is None or limit >= len(records):
        return records
    names = identities(records, read)
    order = sorted(range(len(records)), key=lambda index: (names[index], records[index].id))
    kept = set(order[:limit])
    return [record for index, record in enumerate(records) if index in kept]


def _lines(spec: Mapping[str, Any], base: Path, fail: Fail) -> Iterable[Line]:
    path = Path(spec["path"]).expanduser()
    path = path if path.is_absolute() else base / path
    if path.is_file():
        return _file_lines(path, fail)
    if HUB_ID.fullmatch(spec["path"]) and not spec["path"].endswith(SUFFIXES) and not path.exists():
        return _hub_lines(spec)
    if path.is_dir():
        raise DataError(f"{path} is a folder.", f"Name a file in it that ends in {', '.join(SUFFIXES)}.")
    raise DataError(f"There is no file {path}.", _file_hint(spec["path"], path))


def _file_hint(written: str, path: Path) -> str:
    """A hint with the nearest name: of a bundled data set, or of a file in the same folder."""
    neighbours = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    bundled = [] if path.suffix else [entry.name for entry in catalogue("dataset")]
    if close := nearest(written, bundled):
        return f"Did you mean the bundled data set `{close}`?"
    close = nearest(path.name, neighbours)
    return f"Did you mean {path.parent / close}?" if close else "Relative paths start from the recipe's folder."


def _file_lines(path: Path, fail: Fail) -> Iterator[Line]:
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: `{path.suffix}` is not a format of data files.", f"Known: {', '.join(SUFFIXES)}.")
    try:
        yield from reader(path, fail)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def _jsonl(path: Path, fail: Fail) -> Iterator[Line]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            origin = f"{path.name}:{number}"
            try:
                text = _decode(raw, origin)
                if text.strip():
                    yield origin, _parse(text, origin)
            except DataError as error:
                fail(error)


def _json(path: Path, fail: Fail) -> Iterator[Line]:
    raw = path.read_bytes()
    rows = _parse(_decode(raw, path.name), path.name)
    if not isinstance(rows, list):
        raise DataError(
            f"{path.name}: a .json file must hold a list of records, found {type(rows).__name__}.",
            "Name the file .jsonl if each of its lines is a record.",
        )
    for number, row in enumerate(rows, 1):
        yield f"{path.name}[{number}]", row


def _csv(path: Path, fail: Fail) -> Iterator[Line]:
    # The whole text is decoded first: a quoted cell may span lines, so single lines cannot be decoded and parsed.
    reader = csv.DictReader(io.StringIO(_decode(path.read_bytes(), path.name), newline=""), strict=True)
    try:
        _refuse_other_separators(path, reader)
        for row in reader:
            origin = f"{path.name}:{reader.line_num}"
            # DictReader marks surplus cells by the key None and missing cells by the value None.
            if None in row or None in row.values():
                names = reader.fieldnames or []
                fail(DataError(f"{origin}: the number of cells differs from the header's {len(names)}."))
            else:
                yield origin, row
    except csv.Error as error:
        raise DataError(f"{path.name}:{reader.reader.line_num}: not valid CSV: {error}.") from None


def _refuse_other_separators(path: Path, reader: csv.DictReader[str]) -> None:
    header = (reader.fieldnames or [""])[0]
    sign = next((sign for sign in ";\t|" if sign in header), None)
    if len(reader.fieldnames or []) == 1 and sign is not None:
        raise DataError(
            f"{path.name}:1: the header has one column, {header!r}: {sign!r} separates its cells instead of commas.",
            "Save the file with commas, or as JSON lines.",
        )


def _parquet(path: Path, fail: Fail) -> Iterator[Line]:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path.name} is not a readable parquet file: {error}.") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{path.name}[{number}]", ColumnarRow(row)


def _hub_lines(spec: Mapping[str, Any]) -> Iterator[Line]:
    import datasets

    name, split = spec["path"], spec.get("split") or "train"
    try:
        rows = datasets.load_dataset(name, spec.get("config"), split=split)
    except LuthierError:
        raise
    except Exception as error:  # the library raises dozens of types for a data set that does not exist
        raise DataError(
            f"There is no file `{name}`, and it cannot be fetched as a data set of the hub: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            "Check the path, or the id, `config:` and `split:` of the data set and the network.",
        ) from None
    for number, row in enumerate(rows, 1):
        yield f"{name}:{split}[{number}]", ColumnarRow(row)


def _decode(raw: bytes, origin: str) -> str:
    try:
        return raw.decode("utf-8-sig")  # spreadsheets write a byte order mark, which is no part of the first name
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        newlines = before.count(b"\n")
        line = "" if ":" in origin else f", line {newlines + 1}"
        column = error.start - (before.rfind(b"\n") + 1) + 1
        utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
        raise NotUtf8(
            f"{origin}{line}: byte {column} (0x{raw[error.start]:02x}) is not UTF-8"
            + (": the file looks like UTF-16." if utf16 else "."),
            f"Convert the file: `iconv -f {'UTF-16' if utf16 else 'LATIN1'} -t UTF-8 old > new`.",
        ) from None


def _parse(text: str, origin: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        line = f"{origin}:{error.lineno}" if ":" not in origin else origin
        message = f"{line}: not valid JSON: {error.msg} (column {error.colno})."
        raise DataError(message, _json_hint(text, origin)) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{origin}: not valid JSON: {reason}.") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _json_hint(text: str, origin: str) -> str:
    if ":" in origin and text.lstrip().startswith("["):
        return "The line starts a list: name the file .json if it holds one list of records."
    if ":" not in origin:
        return "Name the file .jsonl if each of its lines is a record."
    return "Each line of a .jsonl file is one complete JSON object."
