"""Run folders: numbered, with one writer, written so that a crash or a full disk loses nothing already there."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import RunError


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>/<n>/`, the folder of everything that one command computes."""

    path: Path

    @classmethod
    def create(cls, out: Path, name: str) -> RunFolder:
        """Make the next numbered folder under `out/name`; several processes may do so at once.

        Raises:
            RunError: the folder cannot be made.
        """
        parent = out / name
        try:
            parent.mkdir(parents=True, exist_ok=True)
            while True:
                taken = [int(child.name) for child in parent.iterdir() if child.name.isdecimal()]
                path = parent / str(max(taken, default=0) + 1)
                try:
                    path.mkdir()
                except FileExistsError:  # another process took the number in between
                    continue
                return cls(path)
        except OSError as error:
            raise cannot_write(parent, error, "Choose another place with `out=FOLDER`.") from None

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run folder.

        Raises:
            RunError: there is no such folder.
        """
        if not path.is_dir():
            raise RunError(f"There is no run folder {path}.", "Give the numbered folder of a run, such as runs/name/1.")
        return cls(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder as its only writer; the lock goes with the process, however that ends.

        Raises:
            RunError: another process is writing to it.
        """
        path = self.path / ".lock"
        try:
            handle = open(path, "a+", encoding="ascii", opener=no_link)  # noqa: SIM115 - held until the caller is done
        except OSError as error:
            raise cannot_write(path, error, "A run needs a folder that can be written.") from None
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                who = handle.read().strip() or "unknown"
                raise RunError(
                    f"{self.path} is being written by another process (process id {who}).",
                    "Wait until it ends, stop it, or start a new run.",
                ) from None
            handle.truncate(0)
            handle.write(f"{os.getpid()}\n")
            handle.flush()
            yield


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step: readers see the old file or the new one, also after a power cut.

    Numbers that JSON does not know (NaN, infinity) are written as null.

    Raises:
        RunError: the disk is full or the file cannot be written; the previous file is still there.
    """
    write_text(path, json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step, as `write_json` does."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as handle:
            handle.write(text.encode("utf-8", "backslashreplace"))
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        sync(path.parent)  # the new name is an entry of the folder, which has to reach the disk too
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = "The previous version of the file is unchanged." if path.exists() else "Nothing was written."
        raise cannot_write(path, error, kept) from None


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.", "Is this the folder of a finished run?") from None
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}.") from None


def append_jsonl(path: Path, content: Any) -> None:
    """Add one line. A torn last line, left by a crash, is cut off first; a failed write leaves no torn line.

    Raises:
        RunError: the disk is full or the file cannot be written; all earlier lines are still there.
    """
    line = json.dumps(_finite(content), ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"
    try:
        with open(path, "r+b" if path.exists() else "w+b", buffering=0, opener=no_link) as handle:
            end = _end_of_lines(handle)
            handle.truncate(end)
            handle.seek(end)
            try:
                _write_all(handle, line)
            except OSError:
                handle.truncate(end)
                raise
    except OSError as error:
        raise cannot_write(path, error, "All lines written before are kept.") from None


def no_link(path: str, flags: int) -> int:
    """An `opener` that follows no link: in a folder that came from elsewhere it may lead to any file of the user."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def read_jsonl(path: Path) -> list[Any]:
    """The records of all complete lines; [] when the file does not exist yet. A torn last line is left out.

    Raises:
        RunError: a line in the middle is damaged.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(text.split(b"\n")[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise RunError(f"{path}:{number} is damaged: {error}.") from None
    return records


def _end_of_lines(handle: Any) -> int:
    """Length of the file without a torn last line."""
    end = handle.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 4096)
        handle.seek(start)
        newline = handle.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _write_all(handle: Any, content: bytes) -> None:
    while content:  # an unbuffered write may end early, for instance on a full disk
        content = content[handle.write(content) :]


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _finite(content: Any) -> Any:
    """A copy in which numbers that JSON does not know are None."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(below) for key, below in content.items()}
    return [_finite(member) for member in content] if isinstance(content, list | tuple) else content


def cannot_write(path: Path, error: OSError, kept: str) -> RunError:
    """The error for a file that could not be written; `kept` says in a sentence what is still there."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"No space left on the disk while writing {path}. {kept}", "Make room, then go on with --resume."
        )
    return RunError(f"{path} cannot be written: {error.strerror}. {kept}")
