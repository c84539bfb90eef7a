"""Methods: named patches over a recipe. `method:` overrides what the user wrote, `advice:` fills what nobody wrote."""

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
    """One method: what it sets (`method`), what it advises (`advice`) and where it is written."""

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
    return [_find_one(piece.strip(), folders) for piece in name.split("+")]


def list_methods(folder: Path | None = None) -> list[Method]:
    """All methods of the package and those beside the recipe, by name."""
    own = [] if folder is None else [path for path in sorted(folder.glob("*.yaml")) if _is_method(path)]
    found = [read_method(path) for path in [*sorted(FOLDER.glob("*.yaml")), *own]]
    return sorted(found, key=lambda method: method.name)


def method_label(name: str) -> str:
    """A method's name as a folder and a column: "./mine.py+lora8" is "mine+lora8"."""
    pieces = [piece.strip() for piece in name.split("+")]
    return "+".join(Path(piece).stem if piece.endswith((".py", ".yaml")) else piece for piece in pieces)


def _find_one(name: str, folders: tuple[Path, ...]) -> Method:
    if name.endswith((".py", ".yaml")):
        found = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if found is None:
            raise RecipeError(f"There is no method file {name}.", f"Looked in {folders[0]}.")
        return method_of_part(found.resolve()) if name.endswith(".py") else read_method(found)
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
    """A recipe may stand beside methods; only a method has one of these keys at its top."""
    if not path.is_file():
        return False
    try:
        data = yaml.parse(path.read_text(encoding="utf-8"), path.name).data
    except (RecipeError, UnicodeDecodeError):
        return False
    return isinstance(data, dict) and bool({"method", "advice"} & set(data))


def read_method(path: Path) -> Method:
    """Read a method's file and check its keys.

    Raises:
        RecipeError: a key that methods or recipes do not have, or nothing that is set.
    """
    document = yaml.parse(path.read_text(encoding="utf-8"), path.name)
    data = as_block(document.data, path.name)
    for key in data:
        if key not in KEYS:
            close = nearest(key, KEYS)
            hint = f"Did you mean `{close}`?" if close else f"A method has {', '.join(KEYS)}."
            raise RecipeError(f"{path.name}:{document.lines[(key,)]}: a method has no key `{key}`.", hint)
    if not isinstance(data.get("about"), str):
        raise RecipeError(f"{path.name}: `about` is missing.", "Say in one line what the method is.")
    blocks = {key: data.get(key, {}) for key in ("method", "advice")}
    for key, block in blocks.items():
        if not isinstance(block, dict):
            raise RecipeError(f"{path.name}: `{key}` must be a block of recipe keys.")
    if not any(blocks.values()):
        raise RecipeError(f"{path.name} sets nothing.", "Write what the method changes under `method:`.")
    for key, block in blocks.items():
        lines = {place[1:]: line for place, line in document.lines.items() if place[0] == key}
        layer = with_new_names(Layer(block, path.name, path.parent, lines))
        blocks[key] = expand(layer.data)
        check_keys(replace(layer, data=blocks[key]))
    name = path.stem
    return Method(
        name,
        data["about"],
        Layer(blocks["method"], f"method {name}", path.parent),
        Layer(blocks["advice"], f"advice of {name}", path.parent),
        path,
    )


def method_of_part(path: Path) -> Method:
    """The method that a user's part file stands for: that part in its slot, nothing else."""
    slot = slot_of_file(path)
    places = [place for place, name in PARTS.items() if name == slot]
    if slot not in ("objective", "tuner", "selector"):
        raise RecipeError(f"{path.name} is a {slot}, not a method.", "Methods are objectives, tuners or selectors.")
    block, key = places[0]
    layer = Layer({block: {key: {"kind": str(path)}}}, f"method {path.stem}", path.parent)
    about = parts.read_entry(slot, path).about
    return Method(path.stem, about, layer, Layer({}, f"advice of {path.stem}", path.parent), path)


def slot_of_file(path: Path) -> str:
    """The slot a part file belongs to, read from its base class without importing it.

    Raises:
        RecipeError: no class named like the file, or a base class that tells no slot.
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
    """Two patches must not write one key: their order would silently decide.

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
    """A method that is a pipeline brings all steps; those of a recipe, or of another one, would run around them.

    Raises:
        RecipeError: names the method, its steps and the others.
    """
    steps = merged.data.get("steps")
    own = list(steps) if isinstance(steps, dict) else []  # what is no block is refused where all keys are checked
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
    """The steps of a method that is a pipeline; one that only changes blocks of steps has none."""
    steps = method.method.data.get("steps") or {}
    return list(steps) if any("do" in (step or {}) for step in steps.values()) else []


def shared_key(first: Method, second: Method) -> str | None:
    """The first key that both patches write, or one that lies inside a block that the other writes."""
    for key, _ in leaves(second.method.data):
        for other, _ in leaves(first.method.data):
            if key[: len(other)] == other or other[: len(key)] == key:
                return ".".join(min(key, other, key=len))
    return None


def apply_advice(merged: Merged, methods: list[Method], defaults: Layer) -> None:
    """Fill in what methods advise, wherever nobody wrote anything.

    Advice for an option of a part counts only while that part is the one the method was written for.

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
                other, its_value = advised[key]
                raise RecipeError(
                    f"The methods `{other}` and `{method.name}` advise different values for `{'.'.join(key)}`: "
                    f"{its_value!r} and {value!r}.",
                    "Write the one you want in the recipe.",
                )
            advised[key] = (method.name, value)
    for key, (name, value) in advised.items():
        merged.put(key, value, f"advice of {name}")


def _advised_values(method: Method) -> list[tuple[tuple[str, ...], Any]]:
    data = dict(method.advice.data)
    whole = [(("budget",), data.pop("budget"))] if "budget" in data else []
    return [*leaves(data), *whole]


def _same_part(key: tuple[str, ...], data: Any, intended: Any) -> bool:
    for length in range(1, len(key)):
        if key[:length] in PARTS:
            return _kind(data, key[:length]) == _kind(intended, key[:length])
    return True


def _kind(data: Any, key: tuple[str, ...]) -> Any:
    for piece in key:
        data = data.get(piece) if isinstance(data, dict) else None
    return data.get("kind") if isinstance(data, dict) else None
