"""YAML by the rules of version 1.2: `5e-6` is a number, `off` is text, a key written twice is an error."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from luthier.errors import RecipeError

Path = tuple[str, ...]
TAG = "tag:yaml.org,2002:"
DEEPEST = 50
"""Levels of blocks and lists in a recipe."""
MOST = 100_000
"""Values of a recipe; those behind an alias count each time that it is used."""


@dataclass(frozen=True)
class Document:
    """A parsed text, and the line of every key by path."""

    data: Any
    lines: dict[Path, int]


def fault_of(text: str) -> str | None:
    """Why a recipe cannot hold a text; None if it can."""
    if "\x00" in text:
        return "holds the character NUL"
    half = re.search("[\ud800-\udfff]", text)
    return f"holds half of a character ({half[0]!r})" if half else None


class _Loader(yaml.SafeLoader):
    """PyYAML's loader without the implicit types of YAML 1.1."""


_Loader.yaml_implicit_resolvers = {}  # those of 1.1 read `off` as false, `5e-6` as text and `1:30` as 90


_SCHEMA = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)
for _name, _pattern, _first in _SCHEMA:
    _Loader.add_implicit_resolver(TAG + _name, re.compile(f"(?:{_pattern})\\Z"), _first)


def parse(text: str, name: str) -> Document:
    """Read one YAML document. Parsed texts are kept, because a comparison reads its recipe once for every run.

    Args:
        text: the document.
        name: its name in messages, such as the file's.

    Raises:
        RecipeError: malformed text, a key written twice or not text, an unknown tag; with the line.
    """
    document = _parsed(text, name)
    return Document(copy.deepcopy(document.data), document.lines)  # callers change what they read


@cache
def _parsed(text: str, name: str) -> Document:
    try:
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        problem = " ".join(text for text in (error.context, error.problem) if text)
        raise RecipeError(f"{name}{_line(error.problem_mark)}: not valid YAML: {problem}.") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise RecipeError(f"{name}: the YAML is nested too deeply.") from None
    except (ValueError, OverflowError) as error:  # PyYAML lets an impossible \U escape through to chr()
        raise RecipeError(f"{name}: not valid YAML: {error}.") from None
    lines: dict[Path, int] = {}
    data = None if node is None else _Builder(name, lines).build(node, ())
    return Document(data, lines)


def _line(mark: Any) -> str:
    return "" if mark is None else f":{mark.line + 1}"


class _Builder:
    """Turns YAML nodes into plain values, and records the line of every key."""

    def __init__(self, name: str, lines: dict[Path, int]):
        self.name = name
        self.lines = lines
        self.open: list[yaml.Node] = []
        self.built = 0

    def build(self, node: yaml.Node, path: Path) -> Any:
        self.built += 1
        if self.built > MOST:  # lists of aliases of lists of aliases: eight lines stand for 10^8 values
            raise self.error(node, f"the recipe stands for more than {MOST:,} values")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if any(node is parent for parent in self.open):  # or building it would never end
            raise self.error(node, "an alias refers to the block that holds it")
        if len(self.open) >= DEEPEST:
            raise self.error(node, f"blocks are nested more than {DEEPEST} deep")
        self.open.append(node)
        try:
            return self.collection(node, path)
        finally:
            self.open.pop()

    def collection(self, node: yaml.Node, path: Path) -> Any:
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
            return [self.build(member, (*path, str(index))) for index, member in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
            return self.mapping(node, path)
        raise self.error(node, f"the tag {node.tag} is not used in recipes")

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        block: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{TAG}str":
                raise self.error(key_node, "a key is not text", "Put quotes around it.")
            key, key_path = key_node.value, (*path, key_node.value)
            if key in block:  # PyYAML would take the last one in silence
                first = self.lines[key_path]
                raise self.error(key_node, f"`{key}` is written twice (first on line {first})", "Remove one of them.")
            self.lines[key_path] = key_node.start_mark.line + 1
            block[key] = self.build(value_node, key_path)
        return block

    def scalar(self, node: yaml.ScalarNode) -> Any:
        text = node.value
        try:
            match node.tag.removeprefix(TAG):
                case "str":
                    return text
                case "null":
                    return None
                case "bool" if text.lower() in ("true", "false"):
                    return text.lower() == "true"
                case "int":
                    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
                case "float":
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError as error:
            raise self.error(node, f"`{text[:40]}` cannot be read as a number: {error}") from None
        raise self.error(node, f"`{text[:40]}` does not fit the tag {node.tag}")

    def error(self, node: yaml.Node, message: str, hint: str | None = None) -> RecipeError:
        return RecipeError(f"{self.name}{_line(node.start_mark)}: {message}.", hint)
