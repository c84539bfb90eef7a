"""Files of records: each format as lines of (origin, object). Every error names the file, and the line where it can."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from luthier.errors import DataError, LuthierError
from luthier.records.nulls import ColumnarRow

Line = tuple[str, Any]  # origin ("data.jsonl:12") and the object in that line
LONGEST_REASON = 160  # characters of an error of a library, which may list all formats that it knows
BLOCK = 4096  # bytes of a file that tell whether it is text
BATCH = 1000  # rows of a columnar file that are objects at a time

AGAIN = "Write or download the file again, or name another."

PACKED: Mapping[bytes, tuple[str, Callable[[Any], Any]]] = {
    b"\x1f\x8b": (".gz", gzip.open),
    b"BZh": (".bz2", bz2.open),
    b"\xfd7zXZ": (".xz", lzma.open),
    b"\x28\xb5\x2f\xfd": (".zst", lambda path: _zstandard(path)),
}
"""First bytes of a compressed file → its suffix, and what opens it."""
PACKED_SUFFIXES = tuple(suffix for suffix, _ in PACKED.values())


class SourceError(DataError):
    """A file, folder or data set that cannot be read at all, or not from some line on."""


class NotUtf8(DataError):
    """Bytes that are not UTF-8; the doctor counts these errors separately."""


@dataclass(frozen=True)
class Reports:
    """Where a reader tells of lines that cannot be used (`fail`) and of what it took for granted (`note`)."""

    fail: Callable[[DataError], None]
    note: Callable[[str], None]


def suffix_of(path: Path) -> str:
    """The suffix that names the format: `.jsonl` of `data.jsonl.gz`, in lower case."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in PACKED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_file(path: Path, label: str, split: str | None, reports: Reports) -> Iterator[Line]:
    """The lines of a file, in order.

    Args:
        label: the file's name in origins and messages.
        split: the list to take of a .json file that holds several by name.

    Raises:
        SourceError: the file cannot be read, or not from some line on; lines before it have been given.
    """
    readers = {
        **dict.fromkeys((".jsonl", ".ndjson"), _jsonl),
        **dict.fromkeys((".csv", ".tsv"), _csv),
        **dict.fromkeys((".arrow", ".feather"), _arrow),
        ".json": _json,
        ".parquet": _parquet,
    }
    count = 0
    try:
        if path.stat().st_size == 0:
            raise SourceError(f"{label}: the data set is empty: the file has 0 bytes.", AGAIN)
        reader = readers.get(suffix_of(path), _of_library)
        for line in reader(path, label, split, reports):
            yield line
            count += 1
    except LuthierError:
        raise
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise SourceError(
            f"{label}: the compressed file is cut off or damaged after {count} records: {error}.",
            "Download or write it again; `gzip -t FILE` tests one.",
        ) from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror or error}.") from None


def _opened(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked if its first bytes say that it is compressed, whatever its name says."""
    with path.open("rb") as file:
        first = file.read(6)
    for magic, (_, unpack) in PACKED.items():
        if first.startswith(magic):
            return unpack(path)
    if first.startswith(b"PK\x03\x04"):
        raise SourceError(f"{path.name} is a zip archive.", "Unpack it and name the file in it.")
    return path.open("rb")


def _opened_text(path: Path, origin: str) -> IO[bytes]:
    """The bytes of a file that holds text.

    Raises:
        NotUtf8: the text is UTF-16, so that no line could be read; the message names `origin`.
        SourceError: the file is binary, whatever its name says.
    """
    with _opened(path) as file:
        first = file.read(BLOCK)
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        decode(first[:2], origin)
    if b"\x00" in first and not _may_be_utf8(first):
        raise SourceError(
            f"{path.name} is no text: it holds zero bytes.",
            "Give it the suffix of its format, or name another file.",
        )
    return _opened(path)


def _may_be_utf8(beginning: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning)  # a character may be cut at the end
    except UnicodeDecodeError:
        return False
    return True


def _zstandard(path: Path) -> IO[bytes]:
    import pyarrow

    # pyarrow's stream gives blocks; lines need a buffer before it.
    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


def _jsonl(path: Path, label: str, split: str | None, reports: Reports) -> Iterator[Line]:
    with _opened_text(path, f"{label}:1") as file:
        numbered = enumerate(file, 1)
        first = next(((number, raw) for number, raw in numbered if raw.strip()), None)
        if first is None:
            return
        # A list of records under the wrong name: only if the whole file is one, since a broken line may start so too.
        if first[1].lstrip().startswith(b"[") and isinstance(whole := _whole_list(path), list):
            reports.note(f"{label} holds one JSON list, and not a record on each line; it was read as a list")
            yield from _numbered(whole, label)
            return
        for number, raw in chain([first], numbered):
            origin = f"{label}:{number}"
            try:
                text = decode(raw, origin)
                if text.strip():
                    yield origin, parse(text, origin)
            except DataError as error:
                error.origin = origin
                reports.fail(error)


def _whole_list(path: Path) -> Any:
    try:
        with _opened(path) as file:
            return json.loads(file.read())
    except (ValueError, RecursionError):
        return None


def _json(path: Path, label: str, split: str | None, reports: Reports) -> Iterator[Line]:
    with _opened_text(path, label) as file:
        raw = file.read()
    text = decode(raw, label)
    try:
        content = parse(text, label)
    except DataError as error:
        if not _is_record(text.lstrip().partition("\n")[0]):
            raise SourceError(error.message, error.hint) from None
        reports.note(f"{label} holds a record on each line, as .jsonl files do; it was read so")
        del raw, text
        yield from _jsonl(path, label, split, reports)
        return
    rows, inside = _rows_of(content, label, split)
    yield from _numbered(rows, inside)


def _is_record(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _rows_of(content: Any, label: str, split: str | None) -> tuple[list[Any], str]:
    """The records in a JSON document, and its label with the key below which they are."""
    if isinstance(content, list):
        return content, label
    if not isinstance(content, dict):
        raise SourceError(
            f"{label}: a .json file must hold a list of records, found {type(content).__name__}.",
            "Name the file .jsonl if each of its lines is a record.",
        )
    lists = {key: rows for key, rows in content.items() if _are_records(rows)}
    if split is not None and split in lists:
        return lists[split], f"{label}:{split}"
    if len(lists) > 1 and "train" in lists and split is None:
        return lists["train"], f"{label}:train"
    if len(lists) > 1 or (lists and split is not None):
        raise SourceError(
            f"{label} holds lists of records under {', '.join(lists)}.", "Choose one of them by `split:` of the source."
        )
    if lists:
        key, rows = lists.popitem()
        return rows, f"{label}:{key}"
    columns = list(content.values())
    if columns and all(map(_is_column, columns)) and len({*map(len, columns)}) == 1:
        return [dict(zip(content, cells, strict=True)) for cells in zip(*columns, strict=True)], label
    if columns and all(isinstance(column, dict) for column in columns) and len({tuple(c) for c in columns}) == 1:
        # pandas writes a table so: column → number of the row → cell.
        return [{name: column[row] for name, column in content.items()} for row in columns[0]], label
    return [content], label


def _is_column(cells: Any) -> bool:
    """Whether a member of an object is a column of cells, and not the turns of one conversation."""
    return isinstance(cells, list) and not any(isinstance(cell, dict) for cell in cells)


def _are_records(rows: Any) -> bool:
    """Whether a member of an object is a list of records; the turns of one conversation are none."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return False
    return not all(row.keys() & {"role", "from"} for row in rows)


def _numbered(rows: list[Any], label: str) -> Iterator[Line]:
    for number, row in enumerate(rows, 1):
        yield f"{label}[{number}]", row


def _csv(path: Path, label: str, split: str | None, reports: Reports) -> Iterator[Line]:
    csv.field_size_limit(sys.maxsize)  # a cell may hold a whole document; the default is 131,072 characters
    # Bytes that are not UTF-8 pass as surrogates, so that the error is of their row and the other rows are read.
    with io.TextIOWrapper(_opened_text(path, f"{label}:1"), "utf-8-sig", "surrogateescape", newline="") as text:
        head = text.readline()
        while head and not head.strip():
            head = text.readline()
        sign = _separator(head, "\t" if suffix_of(path) == ".tsv" else ",")
        if sign != ("\t" if suffix_of(path) == ".tsv" else ","):
            reports.note(f"{label}: its cells are separated by {sign!r}")
        reader = csv.DictReader(chain([head], text), strict=True, delimiter=sign)
        try:
            _check_header(reader.fieldnames or [], label)
            for row in reader:
                origin = f"{label}:{reader.line_num}"
                try:
                    yield origin, _cells(row, len(reader.fieldnames or []), origin)
                except DataError as error:
                    error.origin = origin
                    reports.fail(error)
        except csv.Error as error:
            raise SourceError(
                f"{label}:{reader.reader.line_num}: not valid CSV: {error}.",
                "Look for a quotation mark that is opened and not closed; inside a cell it is written twice.",
            ) from None


def _separator(head: str, usual: str) -> str:
    """What separates the cells of the first line: the usual sign, or the most frequent other where there is none."""
    others = [sign for sign in ",;\t|" if sign in head]
    return usual if usual in head or not others else max(others, key=head.count)


def _check_header(names: Sequence[str], label: str) -> None:
    for name in names:
        _refuse_bytes(name, f"{label}:1")
        if list(names).count(name) > 1:
            raise SourceError(
                f"{label}:1: the header names the column {name!r} {list(names).count(name)} times.",
                "Give each column a name of its own: only one of them could be read.",
            )


def _cells(row: dict[Any, Any], count: int, origin: str) -> dict[str, str]:
    # DictReader marks surplus cells by the key None and missing cells by the value None.
    if None in row or None in row.values():
        raise DataError(f"{origin}: the number of cells differs from the header's {count}.")
    _refuse_bytes("".join(row.values()), origin)
    return row


def _refuse_bytes(text: str, origin: str) -> None:
    """Raise NotUtf8 for text in which a surrogate stands for a byte."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(error.object[error.start]) - 0xDC00
        raise NotUtf8(f"{origin}: a byte (0x{byte:02x}) is not UTF-8.", _conversion("LATIN1")) from None


def _parquet(path: Path, label: str, split: str | None, reports: Reports) -> Iterator[Line]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _batches(file.iter_batches(batch_size=BATCH), label)
    except pyarrow.ArrowException as error:
        raise SourceError(f"{label} is not a readable parquet file: {error}.", AGAIN) from None


def _arrow(path: Path, label: str, split: str | None, reports: Reports) -> Iterator[Line]:
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(path)) as mapped:
            try:
                batches = pyarrow.ipc.open_stream(mapped)
            except pyarrow.ArrowInvalid:  # Arrow has two forms: a stream, as datasets writes it, and a file
                mapped.seek(0)
                file = pyarrow.ipc.open_file(mapped)
                batches = (file.get_batch(number) for number in range(file.num_record_batches))
            yield from _batches(batches, label)
    except pyarrow.ArrowException as error:
        raise SourceError(f"{label} is not a readable Arrow file: {error}.", AGAIN) from None


def _batches(batches: Any, label: str) -> Iterator[Line]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH):
            for row in batch.slice(start, BATCH).to_pylist():
                number += 1
                yield f"{label}[{number}]", ColumnarRow(row)


def _of_library(path: Path, label: str, split: str | None, reports: Reports) -> Iterator[Line]:
    """The rows of a file whose format the library datasets knows by its suffix."""
    import datasets

    try:
        # A stream reads the file where it lies; otherwise a copy would be written into the library's cache.
        rows = datasets.load_dataset(str(path.parent), data_files=[path.name], split="train", streaming=True)
        first = list(islice(rows, 1))
    except Exception as error:  # the library raises dozens of types for a file that it cannot read
        raise SourceError(
            f"{path}: `{path.suffix}` is not a format of data files ({_first_line(error)}).",
            "Known: .jsonl, .json, .csv, .tsv, .parquet, .arrow, also in .gz, and what `datasets` reads. Save "
            "a spreadsheet as .csv.",
        ) from None
    if first:
        reports.note(f"{label} was read by the library datasets, with the columns {', '.join(first[0])}")
    yield from ((f"{label}[{number}]", ColumnarRow(row)) for number, row in enumerate(rows, 1))


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {line if len(line) <= LONGEST_REASON else f'{line[:LONGEST_REASON]}...'}"


def decode(raw: bytes, origin: str) -> str:
    """The text of bytes in UTF-8; NotUtf8 names the byte."""
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
            _conversion("UTF-16" if utf16 else "LATIN1"),
        ) from None


def _conversion(encoding: str) -> str:
    return f"Convert the file: `iconv -f {encoding} -t UTF-8 old > new`."


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _with_shared_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are the same strings in every line: a million lines would hold a million copies."""
    return {sys.intern(name): content for name, content in pairs}


# One for all lines: making it costs as much as a line.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_with_shared_names)


def parse(text: str, origin: str) -> Any:
    """The object in a line or file of JSON; a DataError names the line and column of a mistake."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = f"{origin}:{error.lineno}" if ":" not in origin else origin
        message = f"{line}: not valid JSON: {error.msg} (column {error.colno})."
        raise DataError(message, _json_hint(text, origin)) from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{origin}: not valid JSON: {reason}.") from None


def _json_hint(text: str, origin: str) -> str:
    if ":" in origin and text.lstrip().startswith("["):
        return "The line starts a list: name the file .json if it holds one list of records."
    if ":" not in origin:
        return "Name the file .jsonl if each of its lines is a record."
    return "Each line of a .jsonl file is one complete JSON object."
