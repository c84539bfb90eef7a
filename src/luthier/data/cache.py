"""Tokenised rows on disk. The name of a file is the hash of its records and their rendering: no file is ever stale."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from itertools import chain, islice, pairwise
from pathlib import Path

import numpy

from luthier.data.render import Renderer
from luthier.errors import RunError
from luthier.types import Row, Stream


@dataclass(frozen=True, slots=True)
class Cached:
    """A rendered record in the cache: its rows, without ids, and the notes of its rendering."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def read_cache(folder: Path, renderer: Renderer, hashes: Sequence[str]) -> list[Cached] | None:
    """The rows of the records with these content hashes, in this order; None if the file is missing or damaged."""
    try:
        with _path(folder, renderer, hashes).open("rb") as file, numpy.load(file, allow_pickle=False) as stored:
            ids, weights, ends, sizes = (stored[name] for name in ("ids", "weights", "ends", "sizes"))
            notes = json.loads(stored["notes"].item())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    borders = [0, *ends.tolist()]
    spans = iter(pairwise(borders))
    cached = []
    for size, record_notes in zip(sizes.tolist(), notes, strict=True):
        rows = []
        for start, end in islice(spans, size):
            rows.append(Row("", ids[start:end], {"weights": Stream(weights[start:end], "token")}))
        cached.append(Cached(tuple(rows), tuple(record_notes)))
    return cached


def write_cache(folder: Path, renderer: Renderer, hashes: Sequence[str], cached: Sequence[Cached]) -> None:
    """Store rendered records in a file that their content hashes and the rendering name.

    Raises:
        RunError: the folder cannot be written.
    """
    path = _path(folder, renderer, hashes)
    rows = [*chain.from_iterable(record.rows for record in cached)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Written under another name and then moved: a run that reads meanwhile sees the complete file or none.
        handle, name = tempfile.mkstemp(prefix=path.stem, suffix=".part", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                numpy.savez(
                    file,
                    ids=numpy.concatenate([row.ids for row in rows]),
                    weights=numpy.concatenate([row.streams["weights"].values for row in rows]),
                    ends=numpy.cumsum([len(row) for row in rows]),
                    sizes=numpy.array([len(record.rows) for record in cached]),
                    notes=numpy.array(json.dumps([record.notes for record in cached])),
                )
            os.replace(name, path)
        except BaseException:  # an interrupt too leaves no partial file
            os.unlink(name)
            raise
    except OSError as error:
        raise RunError(
            f"Tokenised rows cannot be stored in {folder}: {error.strerror or error}.",
            "Free some space or choose another folder for runs (`out:`).",
        ) from None


def _path(folder: Path, renderer: Renderer, hashes: Sequence[str]) -> Path:
    # A template may write today's date into every prompt, as Llama 3's does.
    today = date.today().isoformat() if "strftime" in str(renderer.tokenizer.chat_template) else ""
    key = "\n".join((_code(), renderer.key, today, *hashes))
    return folder / f"rows-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"


@cache
def _code() -> str:
    """Hash of the code that renders: rows of another version of that code are not used."""
    folder = Path(__file__).parent
    names = ("shapes.py", "pairs.py", "templates.py", "render.py", "cache.py")
    reading = [*(folder / "forms").glob("*.py"), *(folder.parent / "records").glob("*.py")]
    files = [*(folder / name for name in names), *sorted(reading)]
    texts = [path.read_bytes() for path in files]
    return hashlib.sha256(b"".join(texts)).hexdigest()
