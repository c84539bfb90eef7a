"""Tokenised rows on disk. One file holds exactly one set of records under one rendering, so none is ever stale."""

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
from pathlib import Path

import numpy

from luthier.data.render import Renderer
from luthier.errors import RunError
from luthier.types import Row, Stream


@dataclass(frozen=True)
class Cached:
    """A rendered record as the cache keeps it; the row's record id is the reader's to set."""

    row: Row
    notes: tuple[str, ...]


def read_cache(folder: Path, renderer: Renderer, hashes: Sequence[str]) -> list[Cached] | None:
    """The rows of these records in this order, or None when they are not there or not whole."""
    try:
        with _path(folder, renderer, hashes).open("rb") as file, numpy.load(file, allow_pickle=False) as stored:
            ids, weights, ends = stored["ids"], stored["weights"], stored["ends"]
            notes = json.loads(stored["notes"].item())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    borders = [0, *ends.tolist()]
    found = []
    for start, end, said in zip(borders, borders[1:], notes, strict=False):
        row = Row("", ids[start:end], {"weights": Stream(weights[start:end], "token")})
        found.append(Cached(row, tuple(said)))
    return found


def write_cache(folder: Path, renderer: Renderer, hashes: Sequence[str], rows: Sequence[Cached]) -> None:
    """Store rows under a name that their records and rendering decide; readers see the whole file or none.

    Raises:
        RunError: the folder cannot be written.
    """
    path = _path(folder, renderer, hashes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=path.stem, suffix=".part", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                numpy.savez(
                    file,
                    ids=numpy.concatenate([one.row.ids for one in rows]),
                    weights=numpy.concatenate([one.row.streams["weights"].values for one in rows]),
                    ends=numpy.cumsum([len(one.row) for one in rows]),
                    notes=numpy.array(json.dumps([one.notes for one in rows])),
                )
            os.replace(name, path)
        except BaseException:
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
    """Hash of the code that renders: rows made by another version of it are not used."""
    here = Path(__file__).parent
    texts = [(here / name).read_bytes() for name in ("shapes.py", "templates.py", "render.py", "cache.py")]
    return hashlib.sha256(b"".join(texts)).hexdigest()
