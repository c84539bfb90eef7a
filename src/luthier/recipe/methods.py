"""Methods: named patches of a recipe. `method:` overrides the recipe's settings, `advice:` fills keys not written."""

from __future__ import annotations

import ast
import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luthier import parts
from luthier.errors import RecipeError, nearest
from luthier.families import families, last_name, slot_of_class
from luthier.recipe import yaml
from luthier.recipe.merge import Layer, Merged, as_block, check_keys, leaves
from luthier.recipe.renamed import with_new_names
from luthier.recipe.settings import PARTS, expand

FOLDER = parts.PACKAGE / "methods"
KEYS = ("about", "method", "advice")


@dataclass(frozen=True)
class Method:
    """One method: the settings that it demands (`method`) and advises (`advice`), and its file."""

    name: str
    about: str
    method: Layer
    advice: Layer
    path: Path


def find_method(name: str, folders: tuple[Path, ...]) -> list[Method]:
    """The patches that a method composes.

    Args:
        name: "dft", "dft+lora8", "./mine.yaml", "./mine.py".
        folders: where the user's own methods and part files may be, the first one wins.

    Raises:
        RecipeError: unknown method, with the nearest name.
    """
    return [_read_named(piece.strip(), folders) for piece in name.split("+")]


def list_methods(folder: Path | None = None) -> list[Method]:
    """All methods of the package, and those in the recipe's folder, by name."""
    own = [] if folder is None else [path for path in sorted(folder.glob("*.yaml")) if _is_method(path)]
    methods = [read_method(path) for path in [*sorted(FOLDER.glob("*.yaml")), *own]]
    return sorted(methods, key=lambda method: method.name)


def method_label(name: str) -> str:
    """A method's name as a folder and a column: "./mine.py+lora8" is "mine+lora8"."""
    pieces = [piece.strip() for piece in name.split("+")]
    return "+".join(Path(piece).stem if piece.endswith((".py", ".yaml")) else piece for piece in pieces)


def _read_named(name: str, folders: tuple[Path, ...]) -> Method:
    if name.endswith((".py", ".yaml")):
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is None:
            raise RecipeError(f"There is no method file {name}.", f"Looked in {folders[0]}.")
        return method_of_part(path.resolve()) if name.endswith(".py") else read_method(path)
    packaged = FOLDER / f"{name}.yaml"
    own = next((path for path in (folder / f"{name}.yaml" for folder in folders) if _is_method(path)), None)
    if own is not None and packaged.is_file() and not own.samefile(packaged):
        raise RecipeError(f"The method `{name}` exists twice: in Luthier and in {own}.", "Rename yours.")
    if own is not None or packaged.is_file():
        return read_method(own or packaged)
    known = {path.stem for path in FOLDER.glob("*.yaml")}
    known |= {path.stem for folder in folders for path in folder.glob("*.yaml") if _is_method(path)}
    close = nearest(name, known)
    hint = f"Did you mean `{close}`?" if close else f"Known: {', '.join(sorted(known)) or 'none'}."
    raise RecipeError(f"There is no method called `{name}`.", hint)


def _is_method(path: Path) -> bool:
    """Whether a YAML file is a method: recipes may lie in the same folder, and have none of these keys at the top."""
    if not path.is_file():
        return False
    try:
        content = yaml.parse(path.read_text(encoding="utf-8"), path.name).data
    except (RecipeError, UnicodeDecodeError):
        return False
    return isinstance(content, dict) and bool({"method", "advice"} & set(content))


def read_method(path: Path) -> Method:
    """Read a method's file and check its keys.

    Raises:
        RecipeError: a key that methods or recipes do not have, or nothing that is set.
    """
    document = yaml.parse(path.read_text(encoding="utf-8"), path.name)
    content = as_block(document.data, path.name)
    for key in content:
        if key not in KEYS:
            close = nearest(key, KEYS)
            hint = f"Did you mean `{close}`?" if close else f"A method has {', '.join(KEYS)}."
            raise RecipeError(f"{path.name}:{document.lines[(key,)]}: a method has no key `{key}`.", hint)
    if not isinstance(content.get("about"), str):
        raise RecipeError(f"{path.name}: `about` is missing.", "Say in one line what the method is.")
    blocks = {key: content.get(key, {}) for key in ("method", "advice")}
    for key, block in blocks.items():
        if not isinstance(block, dict):
            raise RecipeError(f"{path.name}: `{key}` must be a block of recipe keys.")
    if not any(blocks.values()):
        raise RecipeError(f"{path.name} sets nothing.", "Write what the method changes under `method:`.")
    for key, block in blocks.items():
        lines = {path_in_file[1:]: line for path_in_file, line in document.lines.items() if path_in_file[0] == key}
        layer = with_new_names(Layer(block, path.name, path.parent, lines))
        blocks[key] = expand(layer.data)
        check_keys(replace(layer, data=blocks[key]))
    name = path.stem
    return Method(
        name,
        content["about"],
        Layer(blocks["method"], f"method {name}", path.parent),
        Layer(blocks["advice"], f"advice of {name}", path.parent),
        path,
    )


def method_of_part(path: Path) -> Method:
    """The method that sets a user's part in its slot, and nothing else.

    Raises:
        RecipeError: parts of its slot are no methods.
    """
    slot = slot_of_file(path)
    if slot not in ("objective", "tuner", "selector"):
        raise RecipeError(f"{path.name} is a {slot}, not a method.", "Methods are objectives, tuners or selectors.")
    block, key = next(path for path, name in PARTS.items() if name == slot)
    layer = Layer({block: {key: {"kind": str(path)}}}, f"method {path.stem}", path.parent)
    about = parts.read_entry(slot, path).about
    return Method(path.stem, about, layer, Layer({}, f"advice of {path.stem}", path.parent), path)


def slot_of_file(path: Path) -> str:
    """The slot a part file belongs to, read from its base class without importing it.

    Raises:
        RecipeError: no class is named like the file, or its base classes belong to no family.
    """
    entry = parts.read_entry("part", path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    slot = slot_of_class(tree, entry.class_name)
    if slot is not None:
        return slot
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == entry.class_name)
    bases = ", ".join(name for name in map(last_name, node.bases) if name) or "nothing"
    known = ", ".join(family.bases[0] for family in families().values())
    raise RecipeError(
        f"{path.name}: cannot tell what kind of part {entry.class_name} is; it derives from {bases}.",
        f"Derive it from one of {known}, or from a class that derives from one of them.",
    )


def refuse_conflicts(methods: list[Method]) -> None:
    """Refuse methods that write the same key: their order would decide in silence.

    Raises:
        RecipeError: names both patches and the key.
    """
    for first, second in itertools.combinations(methods, 2):
        if (key := shared_key(first, second)) is not None:
            raise RecipeError(
                f"The methods `{first.name}` and `{second.name}` both write `{key}`.",
                "They cannot be composed; compare them as two methods.",
            )


def refuse_steps(methods: list[Method], merged: Merged) -> None:
    """Refuse a method with steps on a recipe with other steps, and two such methods: only one list of steps can run.

    Raises:
        RecipeError: names the method, its steps and the others.
    """
    steps = merged.data.get("steps")
    own = list(steps) if isinstance(steps, dict) else []  # anything but a block is refused where all keys are checked
    pipelines = [method for method in methods if steps_of(method)]
    for method in pipelines:
        if own and own != steps_of(method):
            raise RecipeError(
                f"The method `{method.name}` is a pipeline ({', '.join(steps_of(method))}), and the recipe has steps of"
                f" its own ({', '.join(own)}; {merged.origin(('steps',))}).",
                f"Use it on a recipe without `steps:`, or write its steps there (`luthier methods {method.name}`).",
            )
    if len(pipelines) > 1:
        first, second = pipelines[:2]
        raise RecipeError(
            f"The methods `{first.name}` ({', '.join(steps_of(first))}) and `{second.name}`"
            f" ({', '.join(steps_of(second))}) are both pipelines.",
            "Compare them as two methods, or write a recipe with the `steps:` that you want.",
        )


def steps_of(method: Method) -> list[str]:
    """The steps that a method brings. A method that only changes settings of a recipe's steps brings none."""
    steps = method.method.data.get("steps") or {}
    return list(steps) if any("do" in (step or {}) for step in steps.values()) else []


def shared_key(first: Method, second: Method) -> str | None:
    """The first key that both methods write; one may write a key inside a block that the other writes."""
    for key, _ in leaves(second.method.data):
        for other, _ in leaves(first.method.data):
            if key[: len(other)] == other or other[: len(key)] == key:
                return ".".join(min(key, other, key=len))
    return None


def apply_advice(merged: Merged, methods: list[Method], defaults: Layer) -> None:
    """Apply the advice of methods to keys that nobody wrote.

    Advice for an option of a part counts only if the recipe has the part that the method was written for.

    Raises:
        RecipeError: two methods advise different values for one key that nobody wrote.
    """
    intended = Merged()
    for layer in (defaults, *(method.advice for method in methods), *(method.method for method in methods)):
        intended.add(layer)
    advised: dict[tuple[str, ...], tuple[str, Any]] = {}
    for method in methods:
        for key, value in _advised_values(method):
            if merged.written(key) or not _same_part(key, merged.data, intended.data):
                continue
            if key in advised and advised[key][1] != value:
                other, other_value = advised[key]
                raise RecipeError(
                    f"The methods `{other}` and `{method.name}` advise different values for `{'.'.join(key)}`: "
                    f"{other_value!r} and {value!r}.",
                    "Write the one you want in the recipe.",
                )
            advised[key] = (method.name, value)
    for key, (name, value) in advised.items():
        merged.put(key, value, f"advice of {name}")


def _advised_values(method: Method) -> list[tuple[tuple[str, ...], Any]]:
    blocks = dict(method.advice.data)
    budget = blocks.pop("budget", None)  # as one block, because exactly one of its keys may be set
    return [*leaves(blocks), *([] if budget is None else [(("budget",), budget)])]


def _same_part(key: tuple[str, ...], data: Any, intended: Any) -> bool:
    """Whether the part that has the option `key`, if it is one, is of one kind in both recipes."""
    for length in range(1, len(key)):
        if key[:length] in PARTS:
            return _kind(data, key[:length]) == _kind(intended, key[:length])
    return True


def _kind(data: Any, key: tuple[str, ...]) -> Any:
    for piece in key:
        data = data.get(piece) if isinstance(data, dict) else None
    return data.get("kind") if isinstance(data, dict) else None
