"""The lock: everything a run needs to be repeated, as plain JSON."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.errors import RecipeError
from luthier.recipe.merge import leaves
from luthier.recipe.settings import copy

MARK = "luthier_lock"
FORM = 1
PART_KEYS = ("kind", "do")
"""Keys that may name a part in a file of the user's; `do` that of a step's verb."""
PACKAGES = ("luthier", "torch", "transformers", "peft")


def versions() -> dict[str, str | None]:
    """Versions of what results depend on, read without importing it; None where it is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def part_files(data: dict[str, Any], base: Path) -> dict[str, str]:
    """The text of every part file that a resolved recipe names, by the name used there.

    Raises:
        RecipeError: a file is missing or not text.
    """
    return {kind: _read(kind, base, place) for kind, place in _named_files(data)}


def _named_files(value: Any, path: str = "") -> list[tuple[str, str]]:
    """(kind, place) of the part files in a block, a list or below."""
    if isinstance(value, list):
        return [found for item in value for found in _named_files(item, path)]
    if not isinstance(value, dict):
        return []
    kinds = [value.get(key) for key in PART_KEYS]
    own = [(kind, path) for kind in kinds if isinstance(kind, str) and kind.endswith(".py")]
    return own + [found for key, item in value.items() for found in _named_files(item, f"{path}.{key}".strip("."))]


def _read(kind: str, base: Path, place: str) -> str:
    path = base / kind
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{place}: there is no file {path}.", "Paths of parts are relative to the recipe.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{place}: {path} cannot be read: {error}.") from None


def make_lock(
    name: str, base: Path, data: dict[str, Any], origins: dict[str, str], texts: dict[str, str], extra: dict[str, Any]
) -> dict[str, Any]:
    """The lock of a resolved recipe; `extra` adds what only the run knows, such as data hashes."""
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


def is_lock(data: Any) -> bool:
    """Whether parsed content is a lock."""
    return isinstance(data, dict) and MARK in data


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


def _with_locked_files(value: Any, base: Path, texts: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_with_locked_files(item, base, texts) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _with_locked_files(item, base, texts) for key, item in value.items()}
    for key in PART_KEYS:
        kind = changed.get(key)
        if isinstance(kind, str) and kind in texts:
            changed[key] = _locked_file(kind, base, texts[kind])
    return changed


def _locked_file(kind: str, base: Path, text: str) -> str:
    """The file itself while it is unchanged, else a copy of the locked text in the cache."""
    path = base / kind
    if path.is_file() and path.read_bytes() == text.encode("utf-8"):
        return kind
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luthier" / "parts"
    copied = cache / hashlib.sha256(text.encode("utf-8")).hexdigest()[:16] / Path(kind).name
    if not copied.is_file() or copied.read_bytes() != text.encode("utf-8"):
        try:
            copied.parent.mkdir(parents=True, exist_ok=True)
            temporary = copied.with_name(f".{copied.name}.{os.getpid()}.tmp")
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, copied)
        except OSError as error:
            hint = f"The locked text of {kind} goes there; choose a cache with XDG_CACHE_HOME."
            raise RecipeError(f"{copied} cannot be written: {error.strerror}.", hint) from None
    return str(copied)
