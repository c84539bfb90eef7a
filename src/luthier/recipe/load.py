"""From a file, a name or a dict to a checked recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier import parts
from luthier.errors import RecipeError, nearest
from luthier.recipe import lock, yaml
from luthier.recipe.merge import (
    DEFAULT,
    Key,
    Layer,
    Merged,
    as_block,
    check_keys,
    describe,
    parse_overrides,
    refuse_unwritable,
)
from luthier.recipe.methods import apply_advice, find_method, refuse_conflicts, refuse_steps
from luthier.recipe.renamed import lock_with_new_names, with_new_names
from luthier.recipe.resolve import Recipe, resolve
from luthier.recipe.settings import PARTS, SOURCES, TrainSettings, copy, expand
from luthier.recipe.stages import stages_of

BUNDLED = parts.PACKAGE / "recipes"


def load_recipe(
    path: Path | str | Mapping[str, Any],
    methods: list[str] | tuple[str, ...] = (),
    overrides: list[str] | tuple[str, ...] = (),
    base: Path | None = None,
) -> Recipe:
    """Read a recipe, merge methods and overrides into it, and check every key.

    Order: defaults < `extends` < recipe < methods < overrides; a method's advice fills what nobody wrote.

    Args:
        path: a YAML file, a lock, the name of a bundled recipe, or the content of either as a dict.
        methods: names such as "dft", "dft+lora8", "./mine.py"; several are composed.
        overrides: `train.optimizer.lr=5e-5`; values are YAML.
        base: for a dict, the folder relative paths start from (default: the current one).

    Raises:
        RecipeError: names the file, line and key, and the nearest known name.
    """
    start = _read(path, base)
    written = Layer(parse_overrides(list(overrides)), "command line", Path.cwd())
    refuse_unwritable(written)
    written = with_new_names(written)
    command_line = replace(written, data=expand(written.data))
    check_keys(command_line)
    folders = tuple(dict.fromkeys((Path.cwd(), start.base)))
    patches = [patch for name in methods for patch in find_method(name, folders)]
    refuse_steps(patches, start.merged)
    refuse_conflicts(patches)
    for layer in (*(patch.method for patch in patches), command_line):
        start.merged.add(_from_base(layer, start.base))
    apply_advice(start.merged, patches, _defaults())
    recipe = resolve(start.merged, start.name, start.base)
    stages_of(recipe)  # for its errors: a mistake in a step is reported before anything starts
    return recipe


@dataclass(frozen=True)
class _Start:
    """A recipe with what it extends, before methods and the command line."""

    name: str
    base: Path
    merged: Merged


def _defaults() -> Layer:
    """The default parts of a training.

    They are the lowest layer, so that a recipe may set an option of a default part without naming the part.
    """
    blocks = {path[1]: TrainSettings.model_fields[path[1]].default for path in PARTS if path[0] == "train"}
    return Layer({"train": copy(blocks)}, DEFAULT, Path.cwd())


def _read(path: Path | str | Mapping[str, Any], base: Path | None) -> _Start:
    if isinstance(path, Mapping):
        name, folder, label = "recipe", (base or Path.cwd()).resolve(), "recipe"
        document = yaml.Document(dict(path), {})
    else:
        file = find_recipe(path)
        bundled = file.parent == BUNDLED
        name, folder, label = file.stem, Path.cwd() if bundled else file.parent, f"recipe {file.name}"
        document = _read_file(file)
    if lock.is_lock(document.data):
        lock_base, blocks, origins = lock.open_lock(document.data, label)
        lock_with_new_names(blocks, origins)
        return _Start(blocks.get("name", name), lock_base, Merged(blocks, origins))
    merged = Merged()
    merged.add(_defaults())
    layers = _chain(Layer(as_block(document.data, label), label, folder, document.lines), ())
    for layer in layers:
        merged.add(_from_base(layer, folder))
    return _Start(name, folder, merged)


def find_recipe(path: Path | str) -> Path:
    """The file of a recipe that is named by its path, or by a bundled recipe's name.

    Raises:
        RecipeError: there is none; with the nearest name.
    """
    file = Path(path)
    if _exists(file, file=True):
        return file.resolve()
    named = BUNDLED / f"{path}.yaml"
    if len(file.parts) == 1 and _exists(named, file=True):
        return named
    if _exists(file) and file.is_dir():
        raise RecipeError(f"{file} is a folder, not a recipe.", "Give the recipe's file, or lock.json of a run.")
    beside = file.parent.glob("*.y*ml") if _exists(file.parent) and file.parent.is_dir() else ()
    bundled = sorted(recipe.stem for recipe in BUNDLED.glob("*.yaml"))
    close = nearest(str(path), {*bundled, *(str(file.parent / recipe.name) for recipe in beside)})
    hint = f"Did you mean `{close}`?" if close else f"Bundled recipes: {', '.join(bundled) or 'none'}."
    raise RecipeError(f"There is no recipe {path}.", hint)


def _exists(path: Path, file: bool = False) -> bool:
    """Whether there is such a path, or file. Text that no path can be, too long or with NUL, is none."""
    try:
        return path.is_file() if file else path.exists()
    except (OSError, ValueError):
        return False


def _read_file(file: Path) -> yaml.Document:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{file} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file} is not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from None
    return yaml.parse(text, file.name)


def _chain(layer: Layer, above: tuple[Path, ...]) -> list[Layer]:
    """A recipe and all that it extends, the outermost base first, each with its keys checked.

    Args:
        above: the files that led here by `extends`, to recognise a circle.
    """
    refuse_unwritable(layer)
    layer = with_new_names(layer)
    blocks = dict(layer.data)
    parent = blocks.pop("extends", None)
    own = replace(layer, data=expand(blocks))
    check_keys(own)
    if parent is None:
        return [own]
    if not isinstance(parent, str):
        raise RecipeError(f"{layer.origin(('extends',))}: `extends` names one recipe, found {describe(parent)}.")
    named = layer.folder / parent
    try:
        file = find_recipe(named if _exists(named, file=True) else parent)
    except RecipeError as error:
        raise RecipeError(f"{layer.origin(('extends',))}: extends: {error.message}", error.hint) from None
    if file in above:
        circle = " -> ".join(path.name for path in (*above, file))
        raise RecipeError(f"{layer.origin(('extends',))}: recipes extend each other in a circle: {circle}.")
    document = _read_file(file)
    label = f"recipe {file.name}"
    content = as_block(document.data, label)
    content.pop("name", None)  # the name is of the run, and another recipe extends this one to be another run
    folder = layer.folder if file.parent == BUNDLED else file.parent
    return [*_chain(Layer(content, label, folder, document.lines), (*above, file)), own]


def _from_base(layer: Layer, base: Path) -> Layer:
    """The layer with its relative paths rewritten to start from the recipe's folder."""
    if layer.folder.resolve() == base.resolve():
        return layer
    return replace(layer, data=_rebased(copy(layer.data), (), layer.folder, base))


def _rebased(setting: Any, path: Key, folder: Path, base: Path) -> Any:
    """Settings in which the relative paths of files that exist below `folder` start from `base`."""
    if isinstance(setting, list):
        return [_rebased(member, path, folder, base) for member in setting]
    if isinstance(setting, dict):
        return {key: _rebased(below, (*path, key), folder, base) for key, below in setting.items()}
    if not isinstance(setting, str) or Path(setting).is_absolute():
        return setting
    is_file = path == ("model", "path") or (path[:-1] in SOURCES and path[-1] == "path")
    is_part = path[-1:] in [(key,) for key in lock.PART_KEYS] and setting.endswith(".py")
    # A path without a file may be a hub id, or the name of a bundled model: it stays as it is written.
    if not (is_file or is_part) or not _exists(folder / setting):
        return setting
    return os.path.relpath((folder / setting).resolve(), base)
