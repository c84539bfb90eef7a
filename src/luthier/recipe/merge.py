"""Layers of a recipe and how they are merged; the origin of every setting is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo

from luthier import parts
from luthier.errors import RecipeError, nearest
from luthier.recipe import settings, yaml
from luthier.recipe.aliases import ALIASES
from luthier.recipe.settings import PARTS, SOURCES, Block, Settings, Source

Key = tuple[str, ...]
DEFAULT = "default"


@dataclass(frozen=True)
class Layer:
    """Settings from one source: a file, a method, the command line.

    Attributes:
        data: the settings, as nested blocks.
        label: the name of the source in messages, such as "recipe mine.yaml".
        folder: where relative paths in it start.
        lines: the line of each key.
        renamed: the former name of each key that was written under one.
    """

    data: dict[str, Any]
    label: str
    folder: Path
    lines: Mapping[Key, int] = field(default_factory=dict)
    renamed: Mapping[Key, str] = field(default_factory=dict)

    def origin(self, key: Key) -> str:
        """Where a key was written: the source, its line if that is known, and the former name if one was used."""
        line = former = ""
        for length in range(1, len(key) + 1):  # the longest prefix that is known decides
            prefix = key[:length]
            line = f":{self.lines[prefix]}" if prefix in self.lines else line
            former = f" (as `{self.renamed[prefix]}`)" if prefix in self.renamed else former
        return f"{self.label}{line}{former}"


@dataclass
class Merged:
    """Merged layers: the settings, and the origin of each leaf."""

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Key, str] = field(default_factory=dict)

    def add(self, layer: Layer) -> None:
        """Merge one more layer, which goes before those already there.

        Blocks merge key by key; a block that names another `kind` replaces the one below it, whose options it lacks.
        """
        self._merge(self.data, layer.data, (), layer)

    def put(self, key: Key, value: Any, origin: str) -> None:
        """Set one key; blocks above it that do not exist are made."""
        block = self.data
        for piece in key[:-1]:
            block = block.setdefault(piece, {})
        self._replace(block, key, value, lambda _leaf: origin)

    def origin(self, key: Key) -> str:
        """The origin of a key; else of the block around it, else of what somebody wrote under it."""
        for length in range(len(key), 0, -1):
            if key[:length] in self.origins:
                return self.origins[key[:length]]
        under = [origin for leaf, origin in self.origins.items() if leaf[: len(key)] == key]
        return next((origin for origin in under if origin != DEFAULT), under[0] if under else DEFAULT)

    def written(self, key: Key) -> bool:
        """Whether any layer wrote this key, a key under it, or a plain setting in place of its block."""
        return self.writings()(key)

    def writings(self) -> Callable[[Key], bool]:
        """`written` for many keys: the origins are read once, so that later changes do not count."""
        leaves = {leaf for leaf, origin in self.origins.items() if origin != DEFAULT}
        above = {leaf[:length] for leaf in leaves for length in range(len(leaf) + 1)}
        return lambda key: key in above or any(key[:length] in leaves for length in range(len(key)))

    def _merge(self, old: dict[str, Any], new: dict[str, Any], path: Key, layer: Layer) -> None:
        for name, value in new.items():
            key = (*path, name)
            below = old.get(name)
            if isinstance(value, dict) and isinstance(below, dict) and not _replaces(key, below, value):
                self._merge(below, value, key, layer)
            else:
                self._replace(old, key, value, layer.origin)

    def _replace(self, block: dict[str, Any], key: Key, value: Any, origin: Any) -> None:
        for leaf in [leaf for leaf in self.origins if leaf[: len(key)] == key]:
            del self.origins[leaf]
        block[key[-1]] = settings.copy(value)
        for leaf, _ in leaves(value, key):
            self.origins[leaf] = origin(leaf)


def _replaces(path: Key, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a block takes the place of the one below it instead of merging with it."""
    while path[:1] == ("steps",):  # a step's blocks are merged like the recipe's own
        path = path[2:]
    if path == ("budget",):  # of its keys exactly one may be set
        return True
    if path in SOURCES and "path" in new and "kind" in old:
        return True
    return path in (*PARTS, *SOURCES) and "kind" in new and new["kind"] != old.get("kind")


def leaves(value: Any, path: Key = ()) -> Iterator[tuple[Key, Any]]:
    """All values that are not blocks, with their paths; an empty block and a list are leaves."""
    if isinstance(value, dict) and (value or not path):
        for key, below in value.items():
            yield from leaves(below, (*path, key))
    else:
        yield path, value


def dotted(data: dict[str, Any]) -> dict[str, Any]:
    """The leaves by dotted path, such as `train.optimizer.lr`."""
    return {".".join(key): leaf for key, leaf in leaves(data)}


def refuse_unwritable(layer: Layer) -> None:
    """Refuse settings that no text file could hold, such as those of a dict made by a program.

    Raises:
        RecipeError: a key that is not text, NUL, half a surrogate pair, or blocks nested without end.
    """
    _refuse_unwritable(layer, layer.data, ())


def _refuse_unwritable(layer: Layer, value: Any, path: Key) -> None:
    if len(path) > yaml.DEEPEST:
        raise RecipeError(f"{layer.origin(path)}: `{'.'.join(path[:3])}` is nested more than {yaml.DEEPEST} deep.")
    if isinstance(value, str) and (fault := yaml.fault_of(value)):
        raise RecipeError(f"{layer.origin(path)}: `{'.'.join(path)}` {fault}.")
    if isinstance(value, list | tuple):
        for index, member in enumerate(value):
            _refuse_unwritable(layer, member, (*path, str(index)))
    if isinstance(value, Mapping):
        for key, below in value.items():
            if fault := yaml.fault_of(key) if isinstance(key, str) else "is not text":
                block = ".".join(path) or "the recipe"
                raise RecipeError(f"{layer.origin(path)}: {block} has the key {key!r}, which {fault}.")
            _refuse_unwritable(layer, below, (*path, key))


def check_keys(layer: Layer) -> None:
    """Refuse keys that the recipe does not have.

    Options of parts are not checked here: they are known when the part is built. A source of records that names
    neither a path nor a kind adds to a source of another layer; it is checked after both are merged.

    Raises:
        RecipeError: names the file, the line and the nearest key.
    """
    _check(layer, layer.data, [Settings], ())


def _check(layer: Layer, data: Mapping[str, Any], blocks: Sequence[type[Block]], path: Key) -> None:
    """Refuse keys that none of `blocks` has: several are possible until all layers are merged (`rl`)."""
    fields: dict[str, FieldInfo] = {}
    for block in blocks:
        fields.update(block.model_fields)
    for name, value in data.items():
        key = (*path, name)
        if key == ("extends",):
            raise RecipeError(f"{layer.origin(key)}: `extends` is for recipe files only.")
        if name not in fields:
            raise unknown_key(key, [*fields] if path else [*fields, "extends"], layer.origin(key))
        inner = _named(block_types(fields[name].annotation), value)
        if isinstance(value, dict) and inner:
            _check(layer, value, inner, key)
        elif isinstance(value, dict) and key in SOURCES and "path" in value and "kind" not in value:
            _check(layer, value, [Source], key)


def block_types(annotation: Any) -> list[type[Block]]:
    """The blocks that a field may hold: one, none, or a grammar for each modality (`rl`)."""
    options = get_args(annotation) or (annotation,)
    return [option for option in options if isinstance(option, type) and issubclass(option, Block)]


def block_of(annotation: Any, value: Any) -> type[Block] | None:
    """The block that a field holds for this value; None if it holds none.

    Of several blocks it is the one of the value's `kind`, else the one that has most of the value's keys.
    """
    blocks = _named(block_types(annotation), value)
    if not isinstance(value, Mapping):
        return next(iter(blocks), None)
    return max(blocks, key=lambda block: sum(key in block.model_fields for key in value), default=None)


def _named(blocks: list[type[Block]], value: Any) -> list[type[Block]]:
    """Of several blocks the one that a value names by its `kind`; all of them if it names none."""
    if len(blocks) < 2 or not isinstance(value, Mapping):
        return blocks
    return [block for block in blocks if block.model_fields["kind"].default == value.get("kind")] or blocks


def unknown_key(key: Key, known: list[str], where: str) -> RecipeError:
    """The error for a key that does not exist, with the key that was probably meant.

    Args:
        key: the path that was written.
        known: the keys of its block.
        where: its origin, for the message.
    """
    close, elsewhere = nearest(key[-1], known), keys_named(key[-1], Settings, ())
    parent = ".".join(key[:-1])
    all_known = f"eys {'of `' + parent + '`' if parent else 'of a recipe'}: {', '.join(known)}."
    if ".".join(key) in elsewhere:
        hint = f"`{'.'.join(key)}` is of another kind of `{parent}`; k{all_known}"
    elif own_name := ALIASES.get(key[-1]):
        hint = f"That is `{own_name}` here; k{all_known}"
    elif elsewhere:
        hint = f"There is {' and '.join(f'`{path}`' for path in elsewhere)}; k{all_known}"
    elif close:
        hint = f"Did you mean `{'.'.join((*key[:-1], close))}`?"
    else:
        hint = f"K{all_known}"
    return RecipeError(f"{where}: there is no key `{'.'.join(key)}`.", hint)


def keys_named(name: str, block: type[Block], path: Key) -> list[str]:
    """Dotted paths below a block that end in this name; options of default parts count as keys."""
    matches: list[str] = []
    for field_name, description in block.model_fields.items():
        key, default = (*path, field_name), description.default
        if field_name == name:
            matches.append(".".join(key))
        if key in PARTS and isinstance(default, dict) and name in parts.find(PARTS[key], default["kind"]).options:
            matches.append(".".join((*key, name)))
        for inner in block_types(description.annotation):
            matches += [match for match in keys_named(name, inner, key) if match not in matches]
    return matches


def as_block(data: Any, name: str) -> dict[str, Any]:
    """The top of a recipe file, which must be a block of keys."""
    if data is None:
        raise RecipeError(f"{name} is empty.", "A recipe needs at least `model:` and `data: {train: ...}`.")
    if not isinstance(data, dict):
        raise RecipeError(f"{name} is not a block of keys, but {describe(data)}.")
    return data


def describe(value: Any) -> str:
    """A value as messages show it, in at most 60 characters."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, dict):
        return "a block of keys"
    if isinstance(value, list):
        return "a list"
    text = f"a number of {value.bit_length()} bits" if _is_huge(value) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_huge(value: Any) -> bool:
    """Whether Python refuses to write a number out: by default beyond 4,300 decimal digits."""
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
