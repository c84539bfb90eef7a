"""Parts: how a name in a recipe becomes an object. This file alone imports by name.

A part is one file holding one public class whose name equals the file's stem but for case and
underscores. Nothing is registered: families (families.py) and the catalogue are read from the files with `ast`, and
a part is imported only when it is used.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from luthier.errors import RecipeError, nearest
from luthier.families import PACKAGE, families
from luthier.options import Option, read_options

RENAMED_CONSTANTS: Mapping[str, tuple[str, str]] = {
    "FACE": ("MODALITY", '`"token"` is `"language"`, `"denoiser"` is `"diffusion"`, `"encoder"` is `"contrastive"`.'),
    "HOLDS": ("DETACHED", "The values are the same."),
    "RESTORES": ("DISABLING_RESTORES_BASE", '`"base"` is True, `"nothing"` is False.'),
}
"""Former name of a constant → its name now, and how its values are written now.

A former name is refused only in families that no longer declare it.
"""


class _Lazy(ModuleType):
    """A module imported at its first attribute access."""

    def __getattr__(self, name: str) -> Any:
        module = importlib.import_module(self.__name__)
        value = getattr(module, name)
        self.__dict__[name] = value
        return value


def lazy(name: str) -> Any:
    """A handle on module `name` that costs nothing until used: `torch = lazy("torch")`."""
    return sys.modules[name] if name in sys.modules else _Lazy(name)


class Part(BaseModel):
    """Frozen options plus the verbs of a family. Options never hold state.

    Literal class constants describe it to the catalogue: PAPER, NEEDS, SETTINGS (option sets that the conformance
    matrix exercises), SAME_RESULT (options that change how something is computed, not the result), and those that the
    base class of its family declares. A base class in a `base.py` that declares `SLOT` makes a family.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    PAPER: ClassVar[str] = ""
    NEEDS: ClassVar[tuple[str, ...]] = ()
    SETTINGS: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    SAME_RESULT: ClassVar[tuple[str, ...]] = ()

    @property
    def kind(self) -> str:
        """The name a recipe uses."""
        file = getattr(sys.modules[type(self).__module__], "__file__", None)  # a notebook's classes have none
        return Path(file or type(self).__name__).stem


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue, read without importing the part."""

    slot: str
    name: str
    path: Path
    class_name: str
    about: str
    options: tuple[str, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def described(self) -> tuple[Option, ...]:
        """Its own options and those of its family, with types, defaults and descriptions; read when asked for."""
        return read_options(self.path, self.class_name)


def part_field(slot: str) -> BeforeValidator:
    """Marks an option that holds another part: `base: Annotated[Objective, part_field("objective")]`."""
    return BeforeValidator(lambda value: build(slot, value))


def build(slot: str, spec: Any, base: Path | None = None) -> Any:
    """Make the part that `spec` describes: a name, `{kind: name, ...}`, a path to a file, or a Part.

    Args:
        slot: the family's, such as `objective`.
        base: folder that relative part files are looked up in (the recipe's).

    Raises:
        RecipeError: unknown part or option (with the nearest name), or a value of the wrong type.
    """
    if isinstance(spec, Part):
        return spec
    if isinstance(spec, str):
        spec = {"kind": spec}
    if not isinstance(spec, Mapping) or not isinstance(spec.get("kind"), str):
        raise RecipeError(f"{slot}: expected a name or a block with `kind`, found {spec!r}")
    options = {key: value for key, value in spec.items() if key != "kind"}
    made = load(slot, spec["kind"], base)
    unknown = [key for key in options if key not in made.model_fields]
    if unknown:
        close = nearest(unknown[0], list(made.model_fields))
        known = ", ".join(made.model_fields) or "none"
        hint = f"Did you mean `{close}`?" if close else f"Its options are: {known}."
        raise RecipeError(f"{slot} `{spec['kind']}` has no option `{unknown[0]}`.", hint)
    try:
        part = made(**options)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(piece) for piece in first["loc"]) or "options"
        what, hint = in_words(first)
        found = "" if first["type"] == "missing" else f" (found {first.get('input')!r})"
        raise RecipeError(f"{slot}.{path}: {what}{found}.", hint) from None
    for name, value in options.items():
        if (wanted := _converted(value, getattr(part, name))) is not None:
            raise RecipeError(f"{slot}.{name}: expected {wanted} (found {value!r}).")
    return part


def _converted(given: Any, taken: Any) -> str | None:
    """What was wanted where pydantic took text or a truth value for a number, or one of these for a truth value."""
    if isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        return next((found for pair in zip(given, taken, strict=False) if (found := _converted(*pair))), None)
    if isinstance(given, Mapping) and isinstance(taken, Mapping):
        return next((found for key in given if (found := _converted(given[key], taken.get(key)))), None)
    if isinstance(taken, bool):
        return None if isinstance(given, bool) else "true or false"
    return "a number" if isinstance(taken, int | float) and isinstance(given, bool | str) else None


PLAIN = {
    "missing": "needs a value: it has no default",
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "finite_number": "expected a finite number",
    "string_type": "expected text",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "list_type": "expected a list",
    "tuple_type": "expected a list",
    "too_short": "the list is too short",
    "dict_type": "expected a block of keys",
    "model_type": "expected a block of keys",
}


def in_words(fault: Mapping[str, Any]) -> tuple[str, str | None]:
    """What pydantic found wrong with a value, and a hint where a known word is near."""
    details = fault.get("ctx", {})
    if fault["type"] == "value_error":
        return str(details["error"]), None
    if fault["type"] == "literal_error":
        expected = details["expected"]
        close = nearest(str(fault.get("input")), expected.replace("'", "").replace(" or ", ", ").split(", "))
        return f"expected {expected}", f"Did you mean `{close}`?" if close else None
    words = str(fault["msg"]).replace("Input should be", "must be")
    return PLAIN.get(fault["type"]) or words[:1].lower() + words[1:], None


def load(slot: str, name: str, base: Path | None = None) -> type[Any]:
    """Import the class of a part by name or file, without building it."""
    entry = find(slot, name, base)
    module = _import(entry.path)
    made = getattr(module, entry.class_name)
    if not (isinstance(made, type) and issubclass(made, Part)):
        raise RecipeError(
            f"{slot}: {entry.class_name} in {entry.path.name} is no part.",
            f"Derive it from the base class of its family, as the {slot} parts of the package are.",
        )
    return made


def find(slot: str, name: str, base: Path | None = None) -> Entry:
    """The catalogue entry of a part, without importing it."""
    if name.endswith(".py"):
        path = Path(name) if Path(name).is_absolute() or base is None else base / name
        if not _is_file(path):
            raise RecipeError(f"{slot}: there is no file {path}.", "Paths of parts are relative to the recipe.")
        return read_entry(slot, path.resolve())
    for entry in catalogue(slot):
        if entry.name == name:
            return entry
    known = [entry.name for entry in catalogue(slot)]
    close = nearest(name, known)
    hint = f"Did you mean `{close}`?" if close else f"Known: {', '.join(known)}."
    raise RecipeError(f"There is no {slot} called `{name}`.", hint)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds NUL
        return False


@cache
def catalogue(slot: str) -> tuple[Entry, ...]:
    """All parts of a slot in the package, by name. A stem is unique in its slot."""
    entries: dict[str, Entry] = {}
    for path in families()[slot].files():
        if path.stem in entries:
            raise RecipeError(f"Two {slot} parts are called `{path.stem}`: {entries[path.stem].path} and {path}.")
        entries[path.stem] = read_entry(slot, path)
    return tuple(entries[name] for name in sorted(entries))


@cache
def constants_of(slot: str) -> tuple[str, ...]:
    """The constants of a family's parts: those of every part, and those that its base classes declare.

    Of a slot that is no family's: the constants of all families.
    """
    common = [name for name in Part.__annotations__ if name.isupper()]
    chosen = [families()[slot]] if slot in families() else list(families().values())
    declared = [name for family in chosen for name in family.constants]
    return tuple(dict.fromkeys([*common, *declared]))


def read_entry(slot: str, path: Path) -> Entry:
    """Read a part file's public class, first docstring line, options and constants with `ast`."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise RecipeError(f"{path}:{error.lineno or 1}: not valid Python: {error.msg}.") from None
    except ValueError as error:  # bytes that are no UTF-8, or NUL
        raise RecipeError(f"{path} is not valid Python: {error}.") from None
    wanted = path.stem.replace("_", "").lower()
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    match = [node for node in classes if node.name.lower() == wanted]
    if not match:
        names = ", ".join(node.name for node in classes) or "no class"
        raise RecipeError(
            f"{slot}: {path.name} holds {names}.",
            f"A part file holds one class named like the file, here `{path.stem.title().replace('_', '')}`.",
        )
    about = (ast.get_docstring(match[0]) or ast.get_docstring(tree) or "").split("\n")[0]
    options, constants = [], {}
    for node in match[0].body:
        if not isinstance(node, ast.AnnAssign | ast.Assign):
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if not isinstance(target, ast.Name):
            continue
        _refuse_renamed(slot, target.id, f"{path}:{node.lineno}")
        if target.id in constants_of(slot) and node.value is not None:
            constants[target.id] = _literal(node.value, f"{path}:{node.lineno}: {target.id}")
        elif isinstance(node, ast.AnnAssign) and not target.id.startswith("_") and not target.id.isupper():
            options.append(target.id)
    return Entry(slot, path.stem, path, match[0].name, about, tuple(options), constants)


def _refuse_renamed(slot: str, name: str, where: str) -> None:
    """Raise RecipeError for a constant that has another name now."""
    if name in RENAMED_CONSTANTS and name not in constants_of(slot):
        new, values = RENAMED_CONSTANTS[name]
        raise RecipeError(f"{where}: the constant `{name}` is called `{new}` now.", f"Write `{new}`. {values}")


def _literal(node: ast.expr, where: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise RecipeError(
            f"{where} must be written out as a literal: the catalogue reads it without running it."
        ) from None


OWN = "luthier_part_"
"""What the module names of part files outside the package start with."""


def place_in_part(error: BaseException) -> str | None:
    """The deepest line of a user's own part file that an error went through, as `mine.py:7`."""
    place, trace = None, error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith(OWN):
            place = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def told(error: BaseException) -> str:
    """An error that is not ours in one line, with the place in the user's part file that it comes from."""
    place = place_in_part(error)
    return f"{type(error).__name__}: {error}" + (f" ({place})" if place else "")


def _import(path: Path) -> ModuleType:
    if PACKAGE in path.parents:
        name = ".".join(("luthier", *path.relative_to(PACKAGE).with_suffix("").parts))
        return importlib.import_module(name)
    text = path.read_bytes()
    name = f"{OWN}{path.stem}_{hashlib.sha256(text).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise RecipeError(f"{path} cannot be imported: {type(error).__name__}: {error}.") from error
    return module
