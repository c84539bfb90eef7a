"""A small validator of JSON Schema (2020-12): the keywords that describe JSON, without remote references.

An *instance* is the JSON that a schema describes, as in the standard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any


def _is_integer(instance: Any) -> bool:
    """1.0 is an integer too, as the standard says; true is none, although Python's bool is an int."""
    if isinstance(instance, bool):
        return False
    return isinstance(instance, int) or (isinstance(instance, float) and instance.is_integer())


TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda instance: isinstance(instance, dict),
    "array": lambda instance: isinstance(instance, list),
    "string": lambda instance: isinstance(instance, str),
    "boolean": lambda instance: isinstance(instance, bool),
    "null": lambda instance: instance is None,
    "number": lambda instance: isinstance(instance, int | float) and not isinstance(instance, bool),
    "integer": _is_integer,
}
NUMBERS: dict[str, Callable[[Any, Any], bool]] = {
    "minimum": lambda instance, bound: instance >= bound,
    "maximum": lambda instance, bound: instance <= bound,
    "exclusiveMinimum": lambda instance, bound: instance > bound,
    "exclusiveMaximum": lambda instance, bound: instance < bound,
    # As decimals, because 0.3 is no multiple of 0.1 in floats.
    "multipleOf": lambda instance, step: Fraction(str(instance)) % Fraction(str(step)) == 0,
}
SIZES = {  # keyword → type of the instances it applies to, whether it is a lower bound
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
"""Levels of nesting that are validated; deeper JSON, which a model can write without end, conforms to no schema."""


def unknown_keywords(schema: Any) -> list[str]:
    """Keywords, anywhere in a schema, that `faults` does not check.

    Raises:
        ValueError: a schema within is neither an object nor a boolean.
    """
    if isinstance(schema, bool):
        return []
    if not isinstance(schema, Mapping):
        raise ValueError(f"a schema is an object, found {schema!r}")
    unknown = [name for name in schema if name not in KNOWN]
    for inner in _subschemas(schema):
        unknown += unknown_keywords(inner)
    return unknown


def _subschemas(schema: Mapping[str, Any]) -> Iterator[Any]:
    for name in ("additionalProperties", "items", "contains", "not"):
        if name in schema:
            yield schema[name]
    for name in ("properties", "patternProperties", "$defs", "definitions"):
        yield from schema.get(name, {}).values()
    for name in ("prefixItems", "anyOf", "oneOf", "allOf"):
        yield from schema.get(name, ())


def faults(instance: Any, schema: Schema) -> list[str]:
    """The violations of a schema, each with its path in the instance; empty for an instance that conforms.

    Raises:
        ValueError: a `$ref` points outside of the schema.
    """
    if _deeper_than(DEEPEST, instance):
        return [f"$: nested more than {DEEPEST} deep"]
    return list(_faults(instance, schema, schema, "$"))


def _faults(instance: Any, schema: Schema, root: Schema, at: str) -> Iterator[str]:
    if isinstance(schema, bool):
        if not schema:
            yield f"{at}: not allowed"
        return
    if "$ref" in schema:
        yield from _faults(instance, _resolve(schema["$ref"], root), root, at)
    if "type" in schema and not _is_of_type(instance, schema["type"]):
        yield f"{at}: not of type {schema['type']}"
        return  # the other keywords would only repeat it
    if "enum" in schema and not any(_same(instance, allowed) for allowed in schema["enum"]):
        yield f"{at}: not one of {schema['enum']}"
    if "const" in schema and not _same(instance, schema["const"]):
        yield f"{at}: not {schema['const']!r}"
    yield from _measure_faults(instance, schema, at)
    if isinstance(instance, dict):
        yield from _object_faults(instance, schema, root, at)
    if isinstance(instance, list):
        yield from _array_faults(instance, schema, root, at)
    yield from _combination_faults(instance, schema, root, at)


def _is_of_type(instance: Any, types: str | list[str]) -> bool:
    return any(TYPES[name](instance) for name in ([types] if isinstance(types, str) else types))


def _measure_faults(instance: Any, schema: Mapping[str, Any], at: str) -> Iterator[str]:
    """Bounds of numbers and sizes, and the pattern of a string."""
    for name, holds in NUMBERS.items():
        if name in schema and TYPES["number"](instance) and not holds(instance, schema[name]):
            yield f"{at}: {name} {schema[name]}"
    for name, (kind, lower) in SIZES.items():
        if name in schema and isinstance(instance, kind):
            enough = len(instance) >= schema[name] if lower else len(instance) <= schema[name]
            if not enough:
                yield f"{at}: {name} {schema[name]}"
    if "pattern" in schema and isinstance(instance, str) and not re.search(schema["pattern"], instance):
        yield f"{at}: pattern {schema['pattern']}"


def _object_faults(instance: dict[str, Any], schema: Mapping[str, Any], root: Schema, at: str) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in instance:
            yield f"{at}: `{name}` is missing"
    own, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, inner in instance.items():
        matching = [subschema for pattern, subschema in patterns.items() if re.search(pattern, name)]
        if name in own:
            matching.append(own[name])
        if not matching and "additionalProperties" in schema:
            matching = [schema["additionalProperties"]]
        for subschema in matching:
            yield from _faults(inner, subschema, root, f"{at}.{name}")


def _array_faults(instance: list[Any], schema: Mapping[str, Any], root: Schema, at: str) -> Iterator[str]:
    first = schema.get("prefixItems", ())
    for index, inner in enumerate(instance):
        subschema = first[index] if index < len(first) else schema.get("items", True)
        yield from _faults(inner, subschema, root, f"{at}[{index}]")
    if "contains" in schema and not any(_fits(inner, schema["contains"], root) for inner in instance):
        yield f"{at}: no item matches `contains`"
    if schema.get("uniqueItems") and len({_canonical(inner) for inner in instance}) < len(instance):
        yield f"{at}: items are not unique"


def _combination_faults(instance: Any, schema: Mapping[str, Any], root: Schema, at: str) -> Iterator[str]:
    for subschema in schema.get("allOf", ()):
        yield from _faults(instance, subschema, root, at)
    if "anyOf" in schema and not any(_fits(instance, subschema, root) for subschema in schema["anyOf"]):
        yield f"{at}: matches none of `anyOf`"
    if "oneOf" in schema and sum(_fits(instance, subschema, root) for subschema in schema["oneOf"]) != 1:
        yield f"{at}: does not match exactly one of `oneOf`"
    if "not" in schema and _fits(instance, schema["not"], root):
        yield f"{at}: matches `not`"


def _deeper_than(most: int, instance: Any) -> bool:
    """Whether JSON is nested in more than `most` levels; without recursion, which deep JSON would exhaust."""
    level = [instance]
    for _ in range(most):
        deeper: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                deeper += node.values()
            elif isinstance(node, list):
                deeper += node
        level = deeper
    return any(isinstance(node, dict | list) for node in level)


def _fits(instance: Any, schema: Schema, root: Schema) -> bool:
    return next(_faults(instance, schema, root, "$"), None) is None


def _resolve(reference: str, root: Schema) -> Schema:
    """A reference within the schema: `#` or `#/$defs/name`."""
    if not reference.startswith("#"):
        raise ValueError(f"$ref {reference!r} points outside the schema")
    target: Any = root
    for token in reference[1:].split("/")[1:]:
        target = target[token.replace("~1", "/").replace("~0", "~")]  # RFC 6901: `~1` before `~0`
    return target


def _canonical(instance: Any) -> str:
    """The same text for equal JSON: 1 equals 1.0, and true does not equal 1."""
    if isinstance(instance, float) and instance.is_integer():
        instance = int(instance)
    if isinstance(instance, list):
        return "[" + ",".join(_canonical(inner) for inner in instance) + "]"
    if isinstance(instance, dict):
        members = [f"{json.dumps(name)}:{_canonical(instance[name])}" for name in sorted(instance)]
        return "{" + ",".join(members) + "}"
    return json.dumps(instance)


def _same(first: Any, second: Any) -> bool:
    return _canonical(first) == _canonical(second)
