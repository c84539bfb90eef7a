"""Nulls of columnar files, such as Parquet: all objects of a column have the same keys there, filled with null.

Such a null means that the key is absent, and a template would write it. In a line of JSON a null may be the user's.
The rule, for arguments of calls and for the schemas of tools:

- Elements of lists stay, since no file adds any.
- The tool's schema decides where it speaks: null stays in a required argument, and leaves in one that it does not know.
- Elsewhere, null leaves in records of columnar files and stays in JSON.
- In a schema null is no value of any keyword but `default` and `const`, so it leaves in all files, and these in
  columnar ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

ABSENT = "nulls in tool arguments or tools that stand for absent keys, left out"
KEPT = "nulls in tool arguments, kept as values"
Note = Callable[[str], None]


class ColumnarRow(dict[str, Any]):
    """A row of a columnar file, whose objects may have keys that are null because another row has them."""


def plain(content: Any) -> Any:
    """Lists and objects of Python: arrays as lists, and the pairs of Arrow's maps as objects."""
    if isinstance(content, str | None):
        return content
    if hasattr(content, "tolist"):  # arrays and scalars of numpy, which pandas reads from Parquet
        content = content.tolist()
    if isinstance(content, Mapping):
        return {str(key): plain(part) for key, part in content.items()}
    if isinstance(content, list) and content and all(isinstance(pair, tuple) and len(pair) == 2 for pair in content):
        return {str(key): plain(part) for key, part in content}
    if isinstance(content, list | tuple):
        return [plain(part) for part in content]
    return content


def schemas_of(tools: Any) -> dict[str, Any]:
    """Name of a tool → the JSON schema of its arguments, for tools with the key `function`."""
    named = {}
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("parameters"), Mapping):
            named[str(function.get("name"))] = function["parameters"]
    return named


def tool_without_absent(tool: Mapping[str, Any], columnar: bool, note: Note, named: bool = False) -> dict[str, Any]:
    """A tool, or a part of its schema, without the nulls of absent keys.

    Args:
        columnar: whether the tool was read as objects of a columnar file.
        note: takes a note where a null leaves.
        named: whether the keys are names of arguments (the object is that of `properties`), and no keywords.
    """
    kept: dict[str, Any] = {}
    for key, part in tool.items():
        constant = key in ("default", "const") and not named
        if part is None and (columnar or not constant):
            note(ABSENT)
        elif constant:
            kept[key] = arguments_without_absent(part, {}, columnar, note) if columnar else part
        elif isinstance(part, Mapping):
            inner = tool_without_absent(part, columnar, note, named=key == "properties" and not named)
            # An argument's schema of nulls alone is one that another tool has.
            if inner or not (columnar and named and part):
                kept[key] = inner
        elif isinstance(part, list):
            kept[key] = [_part_without_absent(element, columnar, note) for element in part]
        else:
            kept[key] = part
    return kept


def _part_without_absent(element: Any, columnar: bool, note: Note) -> Any:
    return tool_without_absent(element, columnar, note) if isinstance(element, Mapping) else element


def arguments_without_absent(arguments: Any, schema: Any, columnar: bool, note: Note) -> Any:
    """Arguments of a call without the nulls of absent keys, at any depth.

    Args:
        arguments: an object, or a part of one.
        schema: JSON schema of the arguments; an empty object if it is not known.
        columnar: whether the arguments were read as objects of a columnar file.
        note: takes a note where a null leaves, and where one stays.
    """
    schema = schema if isinstance(schema, Mapping) else {}
    if isinstance(arguments, list):
        return [arguments_without_absent(part, schema.get("items"), columnar, note) for part in arguments]
    if not isinstance(arguments, Mapping):
        return arguments
    properties = schema.get("properties") if isinstance(schema.get("properties"), Mapping) else {}
    required = schema.get("required") if isinstance(schema.get("required"), list) else []
    closed = bool(properties) and not schema.get("additionalProperties")
    kept: dict[str, Any] = {}
    for key, part in arguments.items():
        if part is not None:
            kept[key] = arguments_without_absent(part, properties.get(key), columnar, note)
        elif key in required or not (columnar or (closed and key not in properties)):
            kept[key] = None
            note(KEPT)
        else:
            note(ABSENT)
    return kept
