"""Layers of a recipe and how they are laid over each other; each value remembers where it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from luthier import parts
from luthier.errors import RecipeError, nearest
from luthier.recipe import settings, yaml
from luthier.recipe.aliases import OURS
from luthier.recipe.settings import PARTS, SOURCES, Block, Settings, Source

Key = tuple[str, ...]
DEFAULT = "default"


@dataclass(frozen=True)
class Layer:
    """Settings from one place: a file, a method, the command line.

    `label` names the place ("recipe mine.yaml"), `lines` the line of each key there, `folder` is what
    relative paths in it start from.
    """

    data: dict[str, Any]
    label: str
    folder: Path
    lines: Mapping[Key, int] = field(default_factory=dict)

    def origin(self, key: Key) -> str:
        """Where a key was written, with the line when it is known."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.lines:
                return f"{self.label}:{self.lines[key[:length]]}"
        return self.label


@dataclass
class Merged:
    """Layers laid over each other: the values, and the origin of each leaf."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)

    def add(self, layer: Layer) -> None:
        """Lay one more layer on top: a changed `kind` replaces a block, otherwise blocks merge."""
        self._merge(self.data, layer.data, (), layer)

    def put(self, key: Key, value: Any, origin: str) -> None:
        """Set one value, making the blocks above it."""
        block = self.data
        for piece in key[:-1]:
            block = block.setdefault(piece, {})
        self._replace(block, key, value, lambda _leaf: origin)

    def origin(self, key: Key) -> str:
        """Where the value at `key`, or the nearest one around or under it, came from."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.origins:
                return self.origins[key[:length]]
        under = [origin for leaf, origin in self.origins.items() if leaf[: len(key)] == key]
        return next((origin for origin in under if origin != DEFAULT), under[0] if under else DEFAULT)

    def written(self, key: Key) -> bool:
        """Whether anybody wrote this key, something under it, or a value in place of its block."""
        return self.writings()(key)

    def writings(self) -> Callable[[Key], bool]:
        """`written` as it stands now, for asking about many keys."""
        leaves = {leaf for leaf, origin in self.origins.items() if origin != DEFAULT}
        above = {leaf[:length] for leaf in leaves for length in range(len(leaf) + 1)}
        return lambda key: key in above or any(key[:length] in leaves for length in range(len(key)))

    def _merge(self, old: dict[str, Any], new: dict[str, Any], path: Key, layer: Layer) -> None:
        for name, value in new.items():
            here = (*path, name)
            below = old.get(name)
            if isinstance(value, dict) and isinstance(below, dict) and not _replaces(here, below, value):
                self._merge(below, value, here, layer)
            else:
                self._replace(old, here, value, layer.origin)

    def _replace(self, block: dict[str, Any], key: Key, value: Any, origin: Any) -> None:
        for leaf in [leaf for leaf in self.origins if leaf[: len(key)] == key]:
            del self.origins[leaf]
        block[key[-1]] = settings.copy(value)
        for leaf, _ in leaves(value, key):
            self.origins[leaf] = origin(leaf)


def _replaces(path: Key, old: dict[str, Any], new: dict[str, Any]) -> bool:
    while path[:1] == ("steps",):  # a step's blocks are merged like the recipe's own
        path = path[2:]
    if path == ("budget",):
        return True
    if path in SOURCES and "path" in new and "kind" in old:
        return True
    return path in (*PARTS, *SOURCES) and "kind" in new and new["kind"] != old.get("kind")


def leaves(value: Any, path: Key = ()) -> Iterator[tuple[Key, Any]]:
    """All values that are not blocks, with their paths; an empty block and a list are leaves."""
    if isinstance(value, dict) and (value or not path):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    else:
        yield path, value


def check_plain(layer: Layer) -> None:
    """Refuse what no text file would hold: keys that are not text, NUL, half characters, blocks without end."""
    _check_plain(layer, layer.data, ())


def _check_plain(layer: Layer, value: Any, path: Key) -> None:
    if len(path) > yaml.DEEPEST:
        raise RecipeError(f"{layer.origin(path)}: `{'.'.join(path[:3])}` is nested more than {yaml.DEEPEST} deep.")
    if isinstance(value, str) and (fault := yaml.fault_of(value)):
        raise RecipeError(f"{layer.origin(path)}: `{'.'.join(path)}` {fault}.")
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(layer, item, (*path, str(index)))
    if isinstance(value, Mapping):
        for key, item in value.items():
            if fault := yaml.fault_of(key) if isinstance(key, str) else "is not text":
                at = ".".join(path) or "the recipe"
                raise RecipeError(f"{layer.origin(path)}: {at} has the key {key!r}, which {fault}.")
            _check_plain(layer, item, (*path, key))


def check_keys(layer: Layer) -> None:
    """Refuse keys that the recipe does not have, naming the nearest one and the place.

    Options of parts are not looked at: they are known when the part is built. A source that names neither a
    path nor a kind adds to one below it, and is looked at once both are merged.
    """
    _check(layer, layer.data, Settings, ())


def _check(layer: Layer, data: Mapping[str, Any], block: type[Block], path: Key) -> None:
    for name, value in data.items():
        here = (*path, name)
        if here == ("extends",):
            raise RecipeError(f"{layer.origin(here)}: `extends` is for recipe files only.")
        if name not in block.model_fields:
            known = [*block.model_fields] if path else [*block.model_fields, "extends"]
            raise unknown_key(here, known, layer.origin(here))
        inner = _block_type(block.model_fields[name].annotation)
        if isinstance(value, dict) and inner is not None:
            _check(layer, value, inner, here)
        elif isinstance(value, dict) and here in SOURCES and "path" in value and "kind" not in value:
            _check(layer, value, Source, here)


def _block_type(annotation: Any) -> type[Block] | None:
    """The block that a field holds, also where it may be null."""
    options = get_args(annotation) or (annotation,)
    return next((one for one in options if isinstance(one, type) and issubclass(one, Block)), None)


def unknown_key(key: Key, known: list[str], where: str) -> RecipeError:
    """The error for a key that does not exist: names where it stands, by this name or by that of other tools."""
    close, elsewhere = nearest(key[-1], known), _places(key[-1], Settings, ())
    parent = ".".join(key[:-1])
    all_known = f"eys {'of `' + parent + '`' if parent else 'of a recipe'}: {', '.join(known)}."
    if ours := OURS.get(key[-1]):
        hint = f"That is `{ours}` here; k{all_known}"
    elif elsewhere:
        hint = f"There is {' and '.join(f'`{place}`' for place in elsewhere)}; k{all_known}"
    elif close:
        hint = f"Did you mean `{'.'.join((*key[:-1], close))}`?"
    else:
        hint = f"K{all_known}"
    return RecipeError(f"{where}: there is no key `{'.'.join(key)}`.", hint)


def _places(name: str, block: type[Block], path: Key) -> list[str]:
    """Where a recipe has a key of this name, options of the parts that are taken by default included."""
    found = []
    for key, field_ in block.model_fields.items():
        here, inner, default = (*path, key), _block_type(field_.annotation), field_.default
        known = [key]
        if here in PARTS and isinstance(default, dict):
            known += [f"{key}.{option}" for option in parts.find(PARTS[here], default["kind"]).options]
        found += [".".join((*path, one)) for one in known if one.rpartition(".")[2] == name]
        found += _places(name, inner, here) if inner is not None else []
    return found


def as_block(data: Any, name: str) -> dict[str, Any]:
    """The top of a recipe file, which must be a block of keys."""
    if data is None:
        raise RecipeError(f"{name} is empty.", "A recipe needs at least `model:` and `data: {train: ...}`.")
    if not isinstance(data, dict):
        raise RecipeError(f"{name} is not a block of keys, but {describe(data)}.")
    return data


def describe(value: Any) -> str:
    """A short name of a value for messages."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a block of keys"
    if isinstance(value, list):
        return "a list"
    text = f"a number of {value.bit_length()} bits" if _is_huge(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_huge(value: Any) -> bool:
    """Whether Python would not write a number out."""
    return isinstance(value, int) and value.bit_length() > 10_000


def parse_overrides(overrides: list[str]) -> dict[str, Any]:
    """Turn `train.optimizer.lr=5e-5 ...` into one block. Paths under compare.tune and compare.axes stay whole.

    Raises:
        RecipeError: no `=`, an empty path, a value that is not YAML, or a key written twice.
    """
    data: dict[str, Any] = {}
    for text in overrides:
        path, equals, value = text.partition("=")
        pieces = _pieces(path.strip())
        if not equals or not all(pieces):
            raise RecipeError(f"`{text}` is not a setting.", "Write it as key=value, such as train.optimizer.lr=5e-5.")
        _insert(data, pieces, yaml.parse(value, f"command line, {path.strip()}").data, text)
    return data


def _pieces(path: str) -> Key:
    for opaque in ("compare.tune.", "compare.axes."):
        if path.startswith(opaque):
            return (*opaque.split(".")[:2], path.removeprefix(opaque))
    return tuple(path.split("."))


def _insert(data: dict[str, Any], pieces: Key, value: Any, text: str) -> None:
    block = data
    for piece in pieces[:-1]:
        block = block.setdefault(piece, {})
        if not isinstance(block, dict):
            break
    if not isinstance(block, dict) or pieces[-1] in block:
        raise RecipeError(f"command line: `{text}` writes a key that another setting already writes.")
    block[pieces[-1]] = value
