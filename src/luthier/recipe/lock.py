"""The lock: everything a run needs to be repeated, as plain JSON."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError
from luthier.parts import with_current_constants
from luthier.recipe.merge import leaves
from luthier.recipe.settings import copy

MARK = "luthier_lock"
FORM = 1
PART_KEYS = ("kind", "do")
"""Keys that may name a user's part file; `do` names that of a step's verb."""
PACKAGES = ("luthier", "torch", "transformers", "peft")


def versions() -> dict[str, str | None]:
    """Versions of the packages that results depend on, read without importing them; None if not installed."""
    known: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            known[name] = None
    return known


def part_files(data: dict[str, Any], base: Path) -> dict[str, str]:
    """The text of every part file that a resolved recipe names, by the name used there.

    Raises:
        RecipeError: a file is missing or not text.
    """
    return {kind: _read(kind, base, key) for kind, key in _named_files(data, "")}


def _named_files(setting: Any, path: str) -> Iterator[tuple[str, str]]:
    """(file, dotted key) of the part files that a block, a list or anything below names."""
    if isinstance(setting, list):
        for member in setting:
            yield from _named_files(member, path)
    if not isinstance(setting, dict):
        return
    for key in PART_KEYS:
        kind = setting.get(key)
        if isinstance(kind, str) and kind.endswith(".py"):
            yield kind, path
    for key, below in setting.items():
        yield from _named_files(below, f"{path}.{key}".strip("."))


def _read(kind: str, base: Path, key: str) -> str:
    path = base / kind
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{key}: there is no file {path}.", "Paths of parts are relative to the recipe.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{key}: {path} cannot be read: {error}.") from None


def make_lock(
    name: str, base: Path, data: dict[str, Any], origins: dict[str, str], texts: dict[str, str], extra: dict[str, Any]
) -> dict[str, Any]:
    """The lock of a resolved recipe; `extra` holds facts of the run, such as hashes of its data."""
    return {
        **extra,
        MARK: FORM,
        "name": name,
        "base": str(base),
        "recipe": copy(data),
        "origins": dict(origins),
        "parts": dict(texts),
        "versions": versions(),
    }


def is_lock(content: Any) -> bool:
    """Whether the parsed content of a file is a lock."""
    return isinstance(content, dict) and MARK in content


def open_lock(lock: dict[str, Any], name: str) -> tuple[Path, dict[str, Any], dict[tuple[str, ...], str]]:
    """Base folder, recipe and origins of a lock. Part files that changed since are taken from the lock.

    Raises:
        RecipeError: the lock is of another form or incomplete.
    """
    if lock[MARK] != FORM:
        raise RecipeError(f"{name}: this lock has form {lock[MARK]!r}; this version of Luthier reads form {FORM}.")
    missing = [key for key in ("base", "recipe", "origins", "parts") if key not in lock]
    if missing:
        raise RecipeError(f"{name}: the lock has no `{missing[0]}`; it is damaged.")
    base = Path(lock["base"])
    recipe = _with_locked_files(copy(lock["recipe"]), base, lock["parts"])
    origins = {key: lock["origins"].get(".".join(key), "default") for key, _ in leaves(recipe)}
    return base, recipe, origins


def _with_locked_files(setting: Any, base: Path, texts: dict[str, str]) -> Any:
    """Settings in which part files that changed since are replaced by copies of the locked texts."""
    if isinstance(setting, list):
        return [_with_locked_files(member, base, texts) for member in setting]
    if not isinstance(setting, dict):
        return setting
    changed = {key: _with_locked_files(below, base, texts) for key, below in setting.items()}
    for key in PART_KEYS:
        kind = changed.get(key)
        if isinstance(kind, str) and kind in texts:
            changed[key] = _locked_file(kind, base, texts[kind])
    return changed


def _locked_file(kind: str, base: Path, text: str) -> str:
    """The file itself if it is unchanged, else a copy of the locked text in the cache."""
    path = base / kind
    if path.is_file() and path.read_bytes() == text.encode("utf-8"):
        return kind
    text = with_current_constants(text)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luthier" / "parts"
    copied = cache / hashlib.sha256(text.encode("utf-8")).hexdigest()[:16] / Path(kind).name
    if not copied.is_file() or copied.read_bytes() != text.encode("utf-8"):
        try:
            copied.parent.mkdir(parents=True, exist_ok=True)
            temporary = copied.with_name(f".{copied.name}.{os.getpid()}.tmp")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, copied)  # in one step: runs of several processes may need the same copy
        except OSError as error:
            hint = f"The locked text of {kind} goes there; choose a cache with XDG_CACHE_HOME."
            raise RecipeError(f"{copied} cannot be written: {error.strerror}.", hint) from None
    return str(copied)
