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
from itertools import islice, pairwise
from pathlib import Path

import numpy

from luthier.data.render import Renderer
from luthier.errors import RunError
from luthier.types import Row, Stream


@dataclass(frozen=True)
class Cached:
    """A rendered record as the cache keeps it: its rows, one or a pair, whose ids are the reader's to set."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def read_cache(folder: Path, renderer: Renderer, hashes: Sequence[str]) -> list[Cached] | None:
    """The rows of these records in this order, or None when they are not there or not whole."""
    try:
        with _path(folder, renderer, hashes).open("rb") as file, numpy.load(file, allow_pickle=False) as stored:
            ids, weights, ends, sizes = (stored[name] for name in ("ids", "weights", "ends", "sizes"))
            notes = json.loads(stored["notes"].item())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    borders = [0, *ends.tolist()]
    spans = iter(pairwise(borders))
    found = []
    for size, said in zip(sizes.tolist(), notes, strict=True):
        rows = [
            Row("", ids[start:end], {"weights": Stream(weights[start:end], "token")})
            for start, end in islice(spans, size)
        ]
        found.append(Cached(tuple(rows), tuple(said)))
    return found


def write_cache(folder: Path, renderer: Renderer, hashes: Sequence[str], made: Sequence[Cached]) -> None:
    """Store records under a name that their records and rendering decide; readers see the whole file or none.

    Raises:
        RunError: the folder cannot be written.
    """
    path = _path(folder, renderer, hashes)
    rows = [row for one in made for row in one.rows]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=path.stem, suffix=".part", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                numpy.savez(
                    file,
                    ids=numpy.concatenate([row.ids for row in rows]),
                    weights=numpy.concatenate([row.streams["weights"].values for row in rows]),
                    ends=numpy.cumsum([len(row) for row in rows]),
                    sizes=numpy.array([len(one.rows) for one in made]),
                    notes=numpy.array(json.dumps([one.notes for one in made])),
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
    names = ("shapes.py", "pairs.py", "templates.py", "render.py", "cache.py")
    files = [*(here / name for name in names), *sorted((here / "forms").glob("*.py"))]
    texts = [path.read_bytes() for path in files]
    return hashlib.sha256(b"".join(texts)).hexdigest()
