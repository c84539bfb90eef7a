"""The keys of a recipe, read from the settings tree: type, range, default, description. No list of them is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from luthier import parts
from luthier.errors import RecipeError, nearest
from luthier.recipe.blocks import Source
from luthier.recipe.merge import Key, block_of, block_types
from luthier.recipe.settings import AUTO, LISTS, PARTS, SOURCES, Block, Settings

NO_DEFAULT = "–"
SOURCE_FORMS: Mapping[Key, str] = {
    ("data", "train"): "source of records",
    ("evaluate", "retain"): "source of records or null",
}


@dataclass(frozen=True)
class Setting:
    """One key of a recipe.

    Attributes:
        path: dotted, such as `train.batch.records`.
        form: type and range of its values, in words.
        default: as a recipe writes it; NO_DEFAULT if the key is required.
        grammar: the `kind` of `rl` that the key belongs to.
    """

    path: str
    form: str
    default: str
    description: str
    is_block: bool
    grammar: str | None = None


def settings_tree() -> list[Setting]:
    """All keys of a recipe in written order, blocks before the keys within; `rl` once for each of its kinds."""
    return list(_tree(Settings, (), json_schema(), None, None))


def json_schema() -> dict[str, Any]:
    """The JSON schema of a recipe, shorthands included: editors complete keys by it and show their descriptions."""
    schema = Settings.model_json_schema()
    properties = schema["properties"]
    model = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Model"}]}
    properties["model"] = {**model, "description": properties["model"]["description"]}
    properties["extends"] = {"type": "string", "description": "A recipe that this one adds to: file or bundled name."}
    schema = _with_sources(schema)
    schema["$defs"]["Source"] = Source.model_json_schema()
    for block in (schema, *schema["$defs"].values()):
        block.pop("required", None)  # a key that a recipe lacks may be written in the recipe that it extends
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Luthier recipe"}


def _with_sources(schema: Any) -> Any:
    """The schema with a reference wherever a source of records may stand: its validator is written by hand."""
    if isinstance(schema, list):
        return [_with_sources(option) for option in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("title") == "Source":
        return {"$ref": "#/$defs/Source"}
    return {key: _with_sources(below) for key, below in schema.items()}


def _tree(
    block: type[Block], path: Key, schema: Mapping[str, Any], grammar: str | None, instance: Block | None
) -> Iterator[Setting]:
    """The keys of a block.

    `instance` is the block that a recipe has by default: its settings may differ from the class's defaults, as those of
    `rl.generate` do from those of `generate`.
    """
    own = schema if block is Settings else schema["$defs"][block.__name__]
    for name, field in block.model_fields.items():
        key, inner = (*path, name), block_types(field.annotation)
        form = _form_of_part(key) or _form(own["properties"][name])
        value = _default(field) if instance is None else getattr(instance, name)
        yield Setting(".".join(key), form, _default_text(value), field.description or "", bool(inner), grammar)
        for below in inner:
            kind = below.model_fields["kind"].default if len(inner) > 1 else grammar
            yield from _tree(below, key, schema, kind, value if isinstance(value, Block) else None)
        if key == ("data", "train"):  # listed once: every other source of records has the same keys
            yield from _tree(Source, key, schema, grammar, None)


def _default(field: FieldInfo) -> Any:
    return NO_DEFAULT if field.is_required() else field.get_default(call_default_factory=True)


def _default_text(value: Any) -> str:
    """A default as a recipe writes it; empty for a block, whose keys show their own."""
    if isinstance(value, Block):
        return ""
    if isinstance(value, Mapping) and set(value) == {"kind"}:
        return str(value["kind"])
    if isinstance(value, list) and value and all(isinstance(part, Mapping) for part in value):
        return ", ".join(str(part["kind"]) for part in value)
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _form_of_part(path: Key) -> str:
    """The values of a key that takes a part or a source, in words; empty for other keys."""
    if path in SOURCES:
        return SOURCE_FORMS.get(path, "share, whole number, source of records or null")
    if path not in PARTS:
        return ""
    choices = [f"{PARTS[path]} part", *(["a list of parts"] if path in LISTS else [])]
    choices += ["`auto`"] if path in AUTO else []
    choices += ["null"] if path == ("train", "select") else []
    return " or ".join(choices)


WORDS = {"string": "text", "boolean": "true or false", "array": "list", "object": "block", "null": "null"}
NUMBERS = {"integer": "whole number", "number": "number"}


def _form(schema: Mapping[str, Any]) -> str:
    """The values that a JSON schema lets through, in words."""
    if "anyOf" in schema:
        forms = list(dict.fromkeys(_form(option) for option in schema["anyOf"]))
        return " or ".join(forms)
    if "$ref" in schema or "allOf" in schema:
        return "block"
    if "enum" in schema:
        return ", ".join(_written(value) for value in schema["enum"])
    if "const" in schema:
        return _written(schema["const"])
    if schema.get("type") in NUMBERS:
        return NUMBERS[schema["type"]] + _range(schema)
    return WORDS[schema["type"]]


def _written(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str) else json.dumps(value)


def _range(schema: Mapping[str, Any]) -> str:
    """The bounds of a number, such as ` above 0 and at most 1`."""
    bounds = []
    if schema.get("minimum", 0) == 1 and schema["type"] == "integer":
        bounds.append("above 0")
    elif "minimum" in schema:
        bounds.append(f"from {schema['minimum']:g}")
    if "exclusiveMinimum" in schema:
        bounds.append(f"above {schema['exclusiveMinimum']:g}")
    if "maximum" in schema:
        bounds.append(f"at most {schema['maximum']:g}")
    if "exclusiveMaximum" in schema:
        limit = schema["exclusiveMaximum"]
        bounds.append("below 2^32" if limit == 2**32 else f"below {limit:g}")
    return f" {' and '.join(bounds)}" if bounds else ""


def block_at(path: Key, data: Any) -> type[Block]:
    """The innermost block of settings around a path, in the grammar that the recipe's values say."""
    block: type[Block] = Settings
    for name in path:
        data = data.get(name) if isinstance(data, Mapping) else None
        field = block.model_fields.get(name)
        inner = None if field is None else block_of(field.annotation, data)
        if inner is None:
            break
        block = inner
    return block


def description_of(path: Key, data: Any) -> str | None:
    """The description of the deepest key on a path, for the hint of an error; None where there is none."""
    for length in range(len(path), 0, -1):
        block = Source if path[: length - 1] in SOURCES else block_at(path[: length - 1], data)
        if (field := block.model_fields.get(path[length - 1])) is not None:
            return f"{'.'.join(path[:length])}: {field.description}"
    return None


def find(name: str) -> list[Setting]:
    """The key of this name and all keys under it.

    Raises:
        RecipeError: there is no such key; with the nearest one, or the part that has an option of this name.
    """
    every = settings_tree()
    matching = [setting for setting in every if f"{setting.path}.".startswith(f"{name}.")]
    if matching:
        return matching
    for path, slot in PARTS.items():
        option = name.removeprefix(f"{'.'.join(path)}.")
        if option != name:
            owners = [entry.name for entry in parts.catalogue(slot) if option in entry.options]
            known = f"`{option}` is an option of {', '.join(owners)}" if owners else f"No {slot} has it"
            raise RecipeError(
                f"`{name}` is an option of a part; `luthier keys` lists the recipe's own keys.",
                f"{known}: `luthier methods {owners[0] if len(owners) == 1 else 'NAME'}` lists options.",
            )
    close = nearest(name, [setting.path for setting in every])
    ending = dict.fromkeys(setting.path for setting in every if setting.path.rpartition(".")[2] == name)
    hint = f"There is {' and '.join(f'`{path}`' for path in ending)}." if ending else "`luthier keys` lists all."
    raise RecipeError(f"There is no key `{name}`.", hint if ending or not close else f"Did you mean `{close}`?")
