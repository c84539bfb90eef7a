"""The options of a part, read from its file with `ast`: types, ranges, defaults and descriptions.

No part is imported, which would load torch. Base classes, constants and type aliases are followed through
`from luthier.… import …` lines.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

PACKAGE = Path(__file__).parent
WORDS = {"float": "number", "int": "whole number", "bool": "true or false", "str": "text", "dict": "block"}
LISTS = ("list", "tuple", "set", "frozenset", "Sequence", "Iterable")
EMPTY = {"dict()": "{}", "list()": "[]", "tuple()": "[]"}


@dataclass(frozen=True)
class Option:
    """One option of a part, in the words of a recipe.

    Attributes:
        name: the key in a recipe.
        takes: type and range, such as "number ≥ 0" or "forward or reverse".
        default: as a recipe would write it; None where the option must be written.
        description: the text of `Field(description=...)`; empty where there is none, or none that is a literal.
    """

    name: str
    takes: str
    default: str | None
    description: str


class _Source:
    """A parsed file, and what the names in it stand for."""

    def __init__(self, tree: ast.Module):
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.constants: dict[str, ast.expr] = {}
        self.imports: dict[str, tuple[Path, str]] = {}
        for node in tree.body:
            if isinstance(node, ast.Assign):
                self.constants |= dict(_assigned(node.targets[0], node.value))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                self.constants[node.target.id] = node.value
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("luthier."):
                path = PACKAGE.joinpath(*str(node.module).split(".")[1:]).with_suffix(".py")
                self.imports |= {alias.asname or alias.name: (path, alias.name) for alias in node.names}

    def constant(self, name: str) -> tuple[ast.expr, _Source] | None:
        """What a name was assigned, here or in the file of the package that it comes from."""
        if name in self.constants:
            return self.constants[name], self
        imported = self._imported(name)
        return imported[0].constant(imported[1]) if imported else None

    def class_named(self, name: str) -> tuple[ast.ClassDef, _Source] | None:
        """A class of this file, or of the file of the package that it comes from."""
        if name in self.classes:
            return self.classes[name], self
        imported = self._imported(name)
        return imported[0].class_named(imported[1]) if imported else None

    def _imported(self, name: str) -> tuple[_Source, str] | None:
        path, original = self.imports.get(name, (None, ""))
        return (_parsed(path), original) if path is not None and path.is_file() else None


def _assigned(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Name and value of each assignment, `SIDE, CLASSES = 8, 10` included."""
    if isinstance(target, ast.Name):
        yield target.id, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for name, assigned in zip(target.elts, value.elts, strict=False):
            yield from _assigned(name, assigned)


def read_options(path: Path, class_name: str) -> tuple[Option, ...]:
    """The options of a part: its own in written order, then those of its base classes that it does not replace."""
    source = _Source(ast.parse(path.read_text(encoding="utf-8")))
    return tuple(_options(source.classes[class_name], source).values())


@cache
def _parsed(path: Path) -> _Source:
    """A file of the package, which does not change while it runs."""
    return _Source(ast.parse(path.read_text(encoding="utf-8")))


def _options(part: ast.ClassDef, source: _Source) -> dict[str, Option]:
    own = [_option(name, node, source) for name, node in _fields(part)]
    options = {option.name: option for option in own}
    for base in part.bases:
        known = source.class_named(base.id) if isinstance(base, ast.Name) else None
        for name, option in (_options(*known) if known else {}).items():
            options.setdefault(name, option)
    return options


def _fields(part: ast.ClassDef) -> Iterator[tuple[str, ast.AnnAssign]]:
    """Names and definitions of a class's options: annotated, in lower case, and not of the class alone."""
    for node in part.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            hidden = node.target.id.startswith("_") or node.target.id.isupper()
            if not hidden and "ClassVar" not in ast.unparse(node.annotation):
                yield node.target.id, node


def _option(name: str, node: ast.AnnAssign, source: _Source) -> Option:
    # A plain default, `Field(default, ...)`, `Field(default=...)` and `Field(default_factory=...)` are all in use.
    default, about = node.value, _annotated(node.annotation, source)
    if _is_field(node.value):
        about |= _keywords(node.value)
        default = node.value.args[0] if node.value.args else about.get("default")
    if (factory := about.get("default_factory")) is not None:
        default = factory.body if isinstance(factory, ast.Lambda) else ast.Call(factory, [], [])
    default_text = None if default is None or ast.unparse(default) == "..." else _default_text(default, source)
    description = about.get("description")
    text = description.value if isinstance(description, ast.Constant) and isinstance(description.value, str) else ""
    alias = about.get("alias")
    key = str(alias.value) if isinstance(alias, ast.Constant) else name
    return Option(key, _takes(node.annotation, about, source), default_text, text)


def _is_field(node: ast.expr | None) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Field")


def _keywords(call: ast.Call) -> dict[str, ast.expr]:
    return {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}


def _annotated(annotation: ast.expr, source: _Source) -> dict[str, ast.expr]:
    """Keywords of each `Field` within `Annotated[...]`, outer ones before inner ones; an alias is followed."""
    if isinstance(annotation, ast.Name):
        alias = source.constant(annotation.id)
        return _annotated(*alias) if alias else {}
    if not isinstance(annotation, ast.Subscript) or not ast.unparse(annotation.value).endswith("Annotated"):
        return {}
    assert isinstance(annotation.slice, ast.Tuple)
    inner, *metadata = annotation.slice.elts
    about = _annotated(inner, source)
    for call in metadata:
        about |= _keywords(call) if _is_field(call) else {}
    return about


def _default_text(default: ast.expr, source: _Source) -> str:
    """A default as a recipe would write it; one that is computed as the file writes it."""
    if isinstance(default, ast.Name) and (known := source.constant(default.id)) is not None:
        return _default_text(*known)
    try:
        return written(ast.literal_eval(default))
    except ValueError:
        computed = ast.unparse(default)
        return EMPTY.get(computed, computed)


def written(value: Any) -> str:
    """A value as a recipe would write it on one line: `0.05`, `true`, `[a, b]`, `{a: 0.1}`."""
    if isinstance(value, str):
        return value or '""'
    if isinstance(value, dict):
        return "{" + ", ".join(f"{written(key)}: {written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(written(inner) for inner in value) + "]"
    if isinstance(value, float):
        return re.sub(r"e([-+])0+", r"e\1", repr(value))  # 1e-08 is 1e-8 to a reader
    return json.dumps(value, default=str)


def _takes(annotation: ast.expr, about: dict[str, ast.expr], source: _Source) -> str:
    """Type and range in words: "whole number ≥ 1", "number 0 to 1 or null"."""
    kind = _kind(annotation, source)
    bounds = {sign: _default_text(about[sign], source) for sign in ("ge", "gt", "le", "lt") if sign in about}
    if not bounds:
        return kind
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    span = " and ".join(f"{signs[sign]} {_short(bound)}" for sign, bound in bounds.items())
    if bounds.keys() == {"ge", "le"}:
        span = f"{_short(bounds['ge'])} to {_short(bounds['le'])}"
    base = kind.removesuffix(" or null")  # a bound is of the number: "number > 1 or null"
    return f"{base} {span}{kind[len(base) :]}"


def _short(number: str) -> str:
    return number.removesuffix(".0")


def _kind(annotation: ast.expr, source: _Source) -> str:
    """A type in the words of a recipe; that of a part is its slot, and an alias is followed."""
    if isinstance(annotation, ast.Constant):
        return "null" if annotation.value is None else str(annotation.value)
    if isinstance(annotation, ast.BinOp):
        return f"{_kind(annotation.left, source)} or {_kind(annotation.right, source)}"
    if isinstance(annotation, ast.Name):
        known = source.constant(annotation.id) if annotation.id not in WORDS else None
        return _kind(*known) if known else WORDS.get(annotation.id, annotation.id)
    if not isinstance(annotation, ast.Subscript):
        return ast.unparse(annotation)
    inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    outer = ast.unparse(annotation.value).rpartition(".")[2]
    if outer == "Literal":
        return _any_of([_default_text(value, source) for value in inner])
    if outer == "Annotated":
        fields = [call for call in inner[1:] if isinstance(call, ast.Call) and ast.unparse(call.func) == "part_field"]
        return _default_text(fields[0].args[0], source) if fields else _kind(inner[0], source)
    return _composed(outer, [_kind(value, source) for value in inner]) or ast.unparse(annotation)


def _composed(outer: str, kinds: list[str]) -> str | None:
    """A type made of others, in words; None for one that has none."""
    if outer in ("Optional", "Union"):
        return " or ".join([*kinds, "null"] if outer == "Optional" else kinds)
    if outer in ("dict", "Mapping"):
        return f"block of {_plural(kinds[1])}" if kinds[1] != "Any" else "block"
    if outer == "tuple" and "Ellipsis" not in kinds:
        return f"list of {len(kinds)} {_plural(kinds[0])}"
    return f"list of {_plural(kinds[0])}" if outer in LISTS else None


def _any_of(values: list[str]) -> str:
    return " or ".join([", ".join(values[:-1]), values[-1]]) if len(values) > 1 else values[0]


def _plural(kind: str) -> str:
    single = " " not in kind or kind == "whole number"
    return f"{kind}s" if single and not kind.endswith("s") else kind
