"""A small validator of JSON Schema (2020-12): the keywords that describe data, without remote references."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "integer": lambda value: (
        not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    ),
}
NUMBERS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda value, bound: value >= bound,
    "maximum": lambda value, bound: value <= bound,
    "exclusiveMinimum": lambda value, bound: value > bound,
    "exclusiveMaximum": lambda value, bound: value < bound,
    "multipleOf": lambda value, step: Fraction(str(value)) % Fraction(str(step)) == 0,  # decimals as written
}
SIZES = {  # keyword → type it speaks of, whether it is a lower bound
    "minLength": (str, True),
    "maxLength": (str, False),
    "minItems": (list, True),
    "maxItems": (list, False),
    "minProperties": (dict, True),
    "maxProperties": (dict, False),
}
OTHERS = {
    "type", "enum", "const", "pattern", "uniqueItems", "required", "properties", "patternProperties",
    "additionalProperties", "items", "prefixItems", "contains", "anyOf", "oneOf", "allOf", "not", "$ref",
}  # fmt: skip
ANNOTATIONS = {
    "title", "description", "default", "examples", "format", "deprecated", "readOnly", "writeOnly",
    "$schema", "$id", "$comment", "$defs", "definitions",
}  # fmt: skip
KNOWN = OTHERS | ANNOTATIONS | set(NUMBERS) | set(SIZES)
Schema = Mapping[str, Any] | bool
DEEPEST = 100
"""Levels that are looked into: an answer nested deeper keeps to no schema."""


def unknown_keywords(schema: Any) -> list[str]:
    """Keywords, anywhere in a schema, that `faults` would not look at."""
    if isinstance(schema, bool):
        return []
    if not isinstance(schema, Mapping):
        raise ValueError(f"a schema is an object, found {schema!r}")
    found = [name for name in schema if name not in KNOWN]
    for name in ("additionalProperties", "items", "contains", "not"):
        found += unknown_keywords(schema[name]) if name in schema else []
    for name in ("properties", "patternProperties", "$defs", "definitions"):
        found += [word for inner in schema.get(name, {}).values() for word in unknown_keywords(inner)]
    for name in ("prefixItems", "anyOf", "oneOf", "allOf"):
        found += [word for inner in schema.get(name, ()) for word in unknown_keywords(inner)]
    return found


def faults(value: Any, schema: Schema) -> list[str]:
    """What keeps a value from a schema, each with its place; empty for a value that keeps to it."""
    if _deeper_than(DEEPEST, value):
        return [f"$: nested more than {DEEPEST} deep"]
    return list(_faults(value, schema, schema, "$"))


def _faults(value: Any, schema: Schema, root: Schema, at: str) -> Iterator[str]:
    if isinstance(schema, bool):
        if not schema:
            yield f"{at}: nothing may stand here"
        return
    if "$ref" in schema:
        yield from _faults(value, _resolve(schema["$ref"], root), root, at)
    names = schema.get("type")
    if names is not None and not any(TYPES[name](value) for name in ([names] if isinstance(names, str) else names)):
        yield f"{at}: not of type {names}"
        return
    if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
        yield f"{at}: not one of {schema['enum']}"
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{at}: not {schema['const']!r}"
    yield from _measure_faults(value, schema, at)
    if isinstance(value, dict):
        yield from _object_faults(value, schema, root, at)
    if isinstance(value, list):
        yield from _array_faults(value, schema, root, at)
    yield from _combination_faults(value, schema, root, at)


def _measure_faults(value: Any, schema: Mapping[str, Any], at: str) -> Iterator[str]:
    """Bounds of numbers and sizes, and the pattern of a string."""
    for name, holds in NUMBERS.items():
        if name in schema and TYPES["number"](value) and not holds(value, schema[name]):
            yield f"{at}: {name} {schema[name]}"
    for name, (kind, lower) in SIZES.items():
        if name in schema and isinstance(value, kind):
            enough = len(value) >= schema[name] if lower else len(value) <= schema[name]
            if not enough:
                yield f"{at}: {name} {schema[name]}"
    if "pattern" in schema and isinstance(value, str) and not re.search(schema["pattern"], value):
        yield f"{at}: pattern {schema['pattern']}"


def _object_faults(value: dict[str, Any], schema: Mapping[str, Any], root: Schema, at: str) -> Iterator[str]:
    yield from (f"{at}: `{name}` is missing" for name in schema.get("required", ()) if name not in value)
    own, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, inner in value.items():
        matching = [one for pattern, one in patterns.items() if re.search(pattern, name)]
        if name in own:
            matching.append(own[name])
        if not matching and "additionalProperties" in schema:
            matching = [schema["additionalProperties"]]
        for one in matching:
            yield from _faults(inner, one, root, f"{at}.{name}")


def _array_faults(value: list[Any], schema: Mapping[str, Any], root: Schema, at: str) -> Iterator[str]:
    first = schema.get("prefixItems", ())
    for place, inner in enumerate(value):
        one = first[place] if place < len(first) else schema.get("items", True)
        yield from _faults(inner, one, root, f"{at}[{place}]")
    if "contains" in schema and not any(_fits(inner, schema["contains"], root) for inner in value):
        yield f"{at}: contains nothing of what it must"
    if schema.get("uniqueItems") and len({_canonical(inner) for inner in value}) < len(value):
        yield f"{at}: items are not unique"


def _combination_faults(value: Any, schema: Mapping[str, Any], root: Schema, at: str) -> Iterator[str]:
    for one in schema.get("allOf", ()):
        yield from _faults(value, one, root, at)
    if "anyOf" in schema and not any(_fits(value, one, root) for one in schema["anyOf"]):
        yield f"{at}: none of anyOf"
    if "oneOf" in schema and sum(_fits(value, one, root) for one in schema["oneOf"]) != 1:
        yield f"{at}: not exactly one of oneOf"
    if "not" in schema and _fits(value, schema["not"], root):
        yield f"{at}: what it must not be"


def _deeper_than(most: int, value: Any) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return any(isinstance(one, dict | list) for one in level)


def _fits(value: Any, schema: Schema, root: Schema) -> bool:
    return next(_faults(value, schema, root, "$"), None) is None


def _resolve(reference: str, root: Schema) -> Schema:
    """A reference within the schema: `#` or `#/$defs/name`."""
    if not reference.startswith("#"):
        raise ValueError(f"$ref {reference!r} points outside the schema")
    found: Any = root
    for piece in reference[1:].split("/")[1:]:
        found = found[piece.replace("~1", "/").replace("~0", "~")]
    return found


def _canonical(value: Any) -> str:
    """Equal for equal JSON values: 1 is 1.0, true is not 1."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return "[" + ",".join(_canonical(inner) for inner in value) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{_canonical(value[name])}" for name in sorted(value)) + "}"
    return json.dumps(value)


def _same(one: Any, other: Any) -> bool:
    return _canonical(one) == _canonical(other)
