"""Parts: how a name in a recipe becomes an object. This file alone imports by name.

A part is one file that holds one public class, named like the file but for case and underscores. Nothing is
registered: families (families.py) and the catalogue are read from the files with `ast`, and a part is imported only
when it is used.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from luthier.errors import LuthierError, RecipeError, nearest
from luthier.families import PACKAGE, families, last_name
from luthier.options import Option, read_options

RENAMED_CONSTANTS: Mapping[str, tuple[str, str]] = {
    "FACE": ("MODALITY", '`"token"` is `"language"`, `"denoiser"` is `"diffusion"`, `"encoder"` is `"contrastive"`.'),
    "HOLDS": ("DETACHED", "The values are the same."),
    "RESTORES": ("DISABLING_RESTORES_BASE", '`"base"` is True, `"nothing"` is False.'),
}
"""Former name of a constant → its name now, and how its values are written now.

A former name is refused only in families that no longer declare it.
"""


MOVED_MODULES: Mapping[str, str] = {
    "luthier.data.generated": "luthier.datasets",
    "luthier.vision.generated": "luthier.datasets.pictures",
    "luthier.objectives._view": "luthier.objectives.views",
    "luthier.objectives.policy": "luthier.objectives.policy_gradient",
    "luthier.objectives.flow": "luthier.objectives.diffusion",
    "luthier.objectives.vision": "luthier.objectives.contrastive",
    "luthier.engine.precision": "luthier.engine.master_weights",
    "luthier.steps.ground": "luthier.modalities.base",
}
"""Former address of a module that part files import → its address now; docs/renames.md lists all."""


class _Lazy(ModuleType):
    """A module imported at its first attribute access."""

    def __getattr__(self, name: str) -> Any:
        module = importlib.import_module(self.__name__)
        attribute = getattr(module, name)
        self.__dict__[name] = attribute  # so that this method is not called for it again
        return attribute


def lazy(name: str) -> Any:
    """A handle on module `name` that costs nothing until used: `torch = lazy("torch")`."""
    return sys.modules[name] if name in sys.modules else _Lazy(name)


class Part(BaseModel):
    """Frozen options, and the methods of a family. Options never hold state.

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

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns of a record that it reads besides question and answer: records that differ there are different."""
        return ()


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
    part_class = load(slot, spec["kind"], base)
    unknown = [key for key in options if key not in part_class.model_fields]
    if unknown:
        close = nearest(unknown[0], list(part_class.model_fields))
        known = ", ".join(part_class.model_fields) or "none"
        hint = f"Did you mean `{close}`?" if close else f"Its options are: {known}."
        raise RecipeError(f"{slot} `{spec['kind']}` has no option `{unknown[0]}`.", hint)
    try:
        part = part_class(**options)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(piece) for piece in first["loc"]) or "options"
        what, hint = in_words(first)
        written = "" if first["type"] == "missing" else f" (found {first.get('input')!r})"
        raise RecipeError(f"{slot}.{path}: {what}{written}.", hint) from None
    # Pydantic takes "1" and true for numbers, so that a recipe's typing mistake would pass in silence.
    for name, setting in options.items():
        if (expected := _expected_instead(setting, getattr(part, name))) is not None:
            raise RecipeError(f"{slot}.{name}: expected {expected} (found {setting!r}).")
    return part


def _expected_instead(written: Any, option: Any) -> str | None:
    """Which type an option has, where pydantic converted what was written to it; None where nothing was converted."""
    if isinstance(written, list | tuple) and isinstance(option, list | tuple):
        pairs = list(zip(written, option, strict=False))
    elif isinstance(written, Mapping) and isinstance(option, Mapping):
        pairs = [(setting, option.get(key)) for key, setting in written.items()]
    elif isinstance(option, bool):
        return None if isinstance(written, bool) else "true or false"
    else:
        return "a number" if isinstance(option, int | float) and isinstance(written, bool | str) else None
    for pair in pairs:
        if (expected := _expected_instead(*pair)) is not None:
            return expected
    return None


FAULTS = {
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
    """One of pydantic's errors as a sentence, and a hint where a known word is near.

    Args:
        fault: a member of `ValidationError.errors()`.
    """
    details = fault.get("ctx", {})
    if fault["type"] == "value_error":
        return str(details["error"]), None
    if fault["type"] == "literal_error":
        expected = details["expected"]
        close = nearest(str(fault.get("input")), expected.replace("'", "").replace(" or ", ", ").split(", "))
        return f"expected {expected}", f"Did you mean `{close}`?" if close else None
    words = str(fault["msg"]).replace("Input should be", "must be")
    return FAULTS.get(fault["type"]) or words[:1].lower() + words[1:], None


def load(slot: str, name: str, base: Path | None = None) -> type[Any]:
    """Import the class of a part by name or file, without building it.

    Raises:
        RecipeError: there is no such part, its file cannot be imported, or its class is no part.
    """
    entry = find(slot, name, base)
    part_class = getattr(_import(entry.path), entry.class_name)
    if not (isinstance(part_class, type) and issubclass(part_class, Part)):
        raise RecipeError(
            f"{slot}: {entry.class_name} in {entry.path.name} is no part.",
            f"Derive it from the base class of its family, as the {slot} parts of the package are.",
        )
    return part_class


def find(slot: str, name: str, base: Path | None = None) -> Entry:
    """The catalogue entry of a part, by name or file, without importing it.

    Raises:
        RecipeError: there is no such part or file.
    """
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
    names = dict.fromkeys(common)
    for family in chosen:
        names |= dict.fromkeys(family.constants)
    return tuple(names)


def read_entry(slot: str, path: Path) -> Entry:
    """Read a part file's public class, first docstring line, options and constants with `ast`."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise RecipeError(f"{path}:{error.lineno or 1}: not valid Python: {error.msg}.") from None
    except ValueError as error:  # bytes that are no UTF-8, or NUL
        raise RecipeError(f"{path} is not valid Python: {error}.") from None
    part = _class_of_file(tree, slot, path)
    _refuse_renamed(slot, tree, part, path)
    about = (ast.get_docstring(part) or ast.get_docstring(tree) or "").split("\n")[0]
    options, constants = [], {}
    for name, node in _assignments(part):
        if name in constants_of(slot) and node.value is not None:
            constants[name] = _literal(node.value, f"{path}:{node.lineno}: {name}")
        elif isinstance(node, ast.AnnAssign) and not name.startswith("_") and not name.isupper():
            options.append(name)
    return Entry(slot, path.stem, path, part.name, about, tuple(options), constants)


def _class_of_file(tree: ast.Module, slot: str, path: Path) -> ast.ClassDef:
    """The class whose name is the file's but for case and underscores."""
    name = path.stem.replace("_", "").lower()
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in classes:
        if node.name.lower() == name:
            return node
    names = ", ".join(node.name for node in classes) or "no class"
    raise RecipeError(
        f"{slot}: {path.name} holds {names}.",
        f"A part file holds one class named like the file, here `{path.stem.title().replace('_', '')}`.",
    )


def _assignments(part: ast.ClassDef) -> Iterator[tuple[str, ast.AnnAssign | ast.Assign]]:
    """Names and nodes of what a class assigns or annotates."""
    for node in part.body:
        if not isinstance(node, ast.AnnAssign | ast.Assign):
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        if isinstance(target, ast.Name):
            yield target.id, node


def _refuse_renamed(slot: str, tree: ast.Module, part: ast.ClassDef, path: Path) -> None:
    """Raise RecipeError for a constant under its former name, in the class or in a base class of the same file.

    Nothing reads a former name, so that the part would train as if the constant were not there.
    """
    known = constants_of(slot)
    for node in _with_local_bases(tree, part):
        for name, assignment in _assignments(node):
            if name in RENAMED_CONSTANTS and name not in known:
                new, values = RENAMED_CONSTANTS[name]
                raise RecipeError(
                    f"{path}:{assignment.lineno}: the constant `{name}` is called `{new}` now.",
                    f"Write `{new}`. {values}",
                )


FORMER_VALUES = {
    "FACE": {'"token"': '"language"', '"denoiser"': '"diffusion"', '"encoder"': '"contrastive"'},
    "HOLDS": {},
    "RESTORES": {'"base"': "True", '"nothing"': "False"},
}
"""Former constant → its former values as they are written, and what they are now."""


def with_current_constants(text: str) -> str:
    """A part file's text with RENAMED_CONSTANTS under their names of today: run folders hold texts of older parts."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        name = re.match(r"\s+([A-Z]+)\b\s*[:=]", line)
        if name is None or name[1] not in FORMER_VALUES:
            continue
        for former, current in FORMER_VALUES[name[1]].items():
            line = re.sub(rf"=\s*{former}\s*$", f"= {current}", line)
        lines[number] = line.replace(name[1], RENAMED_CONSTANTS[name[1]][0], 1)
    return "\n".join(lines)


def _with_local_bases(tree: ast.Module, part: ast.ClassDef) -> list[ast.ClassDef]:
    """A class, and the classes of its file that it derives from."""
    local = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    chain = [part]
    for node in chain:  # which grows on the way
        bases = [local[name] for name in map(last_name, node.bases) if name in local]
        chain += [base for base in bases if base not in chain]
    return chain


def _literal(node: ast.expr, where: str) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise RecipeError(
            f"{where} must be written out as a literal: the catalogue reads it without running it."
        ) from None


OWN = "luthier_part_"
"""Prefix of the module names of part files outside the package."""


def place_in_part(error: BaseException) -> str | None:
    """The deepest line of a user's part file that an error passed through, as `mine.py:7`; None if there is none."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if str(trace.tb_frame.f_globals.get("__name__", "")).startswith(OWN):
            line = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return line


def describe_error(error: BaseException) -> str:
    """Type and message of any error in one line, with the line of the user's part file that it comes from."""
    line = place_in_part(error)
    return f"{type(error).__name__}: {error}" + (f" ({line})" if line else "")


def _import(path: Path) -> ModuleType:
    """The module of a part file.

    A user's file is imported under a name that holds the hash of its text, so that an edited file is another module
    and two files of one name do not meet.
    """
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
        del sys.modules[name]  # a module that failed half-way would be taken for a whole one next time
        if isinstance(error, LuthierError):  # such as a hook under its former name
            raise RecipeError(f"{path}: {error.message}", error.hint) from error
        line = place_in_part(error)
        where = f"{path.parent / line}" if line and line.startswith(f"{path.name}:") else f"{path}"
        raise RecipeError(
            f"{where} cannot be imported: {type(error).__name__}: {error}.", _where_it_went(error)
        ) from error
    return module


def _where_it_went(error: Exception) -> str | None:
    """The hint of a failed import from the package: the address that the module has now; None of other errors."""
    if not isinstance(error, ImportError) or not str(error.name).startswith("luthier"):
        return None
    new = MOVED_MODULES.get(str(error.name))
    moved = f"`{error.name}` is `{new}` now. " if new else ""
    return f"{moved}docs/renames.md lists the files and names that changed."
