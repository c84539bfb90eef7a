"""The keys of a recipe as users see them: reference page, JSON schema, lookup by name."""

import json
from pathlib import Path

import pytest

from luthier.errors import RecipeError
from luthier.recipe import load_recipe, yaml
from luthier.recipe.keys import find, json_schema, settings_tree
from luthier.recipe.merge import leaves
from luthier.recipe.reference import page

ROOT = Path(__file__).parents[2]


def test_the_committed_reference_is_current():
    committed = (ROOT / "docs" / "reference" / "recipe.md").read_text(encoding="utf-8")
    assert committed == page(), "run `make reference`"


def test_the_reference_has_every_key_that_a_recipe_shows():
    text = page()
    for recipe in (ROOT / "examples" / "small.yaml", ROOT / "examples" / "denoiser.yaml"):
        for key, _ in leaves(load_recipe(recipe).data):
            known = [key[:length] for length in range(1, len(key) + 1)]
            assert any(f"| `{'.'.join(prefix)}` |" in text for prefix in known), key
    assert "| `rl.groups` | whole number above 0 | `8` |" in text
    assert "| `rl.generate.temperature` | number from 0 | `1` |" in text and "`budget.epochs` | number above 0" in text


@pytest.mark.parametrize(
    ("key", "form", "default"),
    [
        ("train.batch.records", "whole number above 0", "16"),
        ("train.objective", "objective part or a list of parts", "sft"),
        ("data.too_long", "`drop`, `truncate`, `error`", "drop"),
        ("rl.level_share", "number above 0 and at most 1", "0.99"),
        ("budget.epochs", "number above 0 or null", "2"),
        ("data.train", "source of records", "–"),
        ("evaluate.sample.shift", "`auto` or number above 0", "auto"),
    ],
)
def test_a_key_tells_its_values_and_its_default(key, form, default):
    setting = find(key)[0]
    assert (setting.path, setting.form, setting.default) == (key, form, default)


def test_a_block_is_told_with_the_keys_within():
    assert [setting.path for setting in find("train.save")] == ["train.save", "train.save.every", "train.save.keep"]
    assert {setting.grammar for setting in find("rl.kind")} == {"generate", "denoise"}


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.bach", "Did you mean `train.batch`"),
        ("records", "There is `train.batch.records` and `budget.records`"),
        ("train.optimizer.lr", "`lr` is an option of adamw: `luthier methods adamw`"),
        ("train.optimizer.lrr", "No optimizer has it"),
    ],
)
def test_a_key_that_is_none_names_the_nearest(key, hint):
    with pytest.raises(RecipeError) as caught:
        find(key)
    assert hint in str(caught.value)


def test_the_schema_describes_every_key_and_has_no_open_reference():
    schema = json_schema()
    text = json.dumps(schema)
    for setting in settings_tree():
        assert json.dumps(setting.description)[1:-1] in text
    references = {piece.split('"')[0] for piece in text.split('"#/$defs/')[1:]}
    assert references <= set(schema["$defs"]) and {"RL", "Denoise", "Source", "Sample"} <= references
    assert schema["additionalProperties"] is False and "required" not in schema  # the rest may be inherited


def allowed(schema, value, root):
    """Whether a schema of ours lets a value through: types, bounds, choices, keys and references."""
    if "$ref" in schema:
        return allowed(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root)
    if "anyOf" in schema:
        return any(allowed(option, value, root) for option in schema["anyOf"])
    types = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None), "number": (int, float)}
    types["integer"] = int
    if "type" in schema and not isinstance(value, types[schema["type"]]):
        return False
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        known = {key: allowed(properties[key], below, root) for key, below in value.items() if key in properties}
        unknown = [] if schema.get("additionalProperties", True) else [key for key in value if key not in properties]
        return all(known.values()) and not unknown and set(schema.get("required", ())) <= set(value)
    if type(value) in (int, float):
        return schema.get("minimum", value) <= value and schema.get("exclusiveMinimum", value - 1) < value
    return True


def test_the_schema_takes_the_recipes_of_the_package_and_not_their_faults():
    schema = json_schema()
    for path in [*(ROOT / "src" / "luthier" / "recipes").glob("*.yaml"), *(ROOT / "examples").glob("*.yaml")]:
        assert allowed(schema, yaml.parse(path.read_text(encoding="utf-8"), path.name).data, schema), path
    right = {"model": "nano", "data": {"train": "a.jsonl"}}
    assert allowed(schema, right, schema)
    for block in (
        {"train": {"bacth": {}}},
        {"train": {"batch": {"records": 0}}},
        {"data": {"train": 3}},
        {"data": {"train": {"path": "a.jsonl", "limits": 3}}},
        {"rl": {"groups": 3, "passes": 2}},
        {"evaluate": {"sample": {"solver": "euler2"}}},
    ):
        assert not allowed(schema, {**right, **block}, schema), block


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("train.batch.records=x", "train.batch.records: Records per update"),
        ("train.batch.micro=0", "train.batch.micro: Tokens"),
        ("generate.top_p=2", "generate.top_p: Tokens are drawn"),
        ("data.train.limit=0", "data.train.limit: The greatest number of records"),
        ("data.too_long=dropp", "Did you mean `drop`?"),
    ],
)
def test_a_wrong_value_is_refused_with_what_the_key_means(text, hint):
    with pytest.raises(RecipeError) as caught:
        load_recipe({"model": "nano", "data": {"train": {"path": "a.jsonl"}}}, overrides=[text])
    assert hint in (caught.value.hint or "")
