import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import RecipeError
from luthier.recipe import load_recipe
from luthier.recipe.merge import Layer, Merged, check_keys, parse_overrides


def lay(*blocks):
    merged = Merged()
    for index, block in enumerate(blocks):
        merged.add(Layer(block, f"layer {index}", Path()))
    return merged


def test_blocks_merge_key_by_key():
    merged = lay({"data": {"max_tokens": 5, "render": "chat"}}, {"data": {"max_tokens": 9}})
    assert merged.data == {"data": {"max_tokens": 9, "render": "chat"}}
    assert merged.origins == {("data", "max_tokens"): "layer 1", ("data", "render"): "layer 0"}


def test_a_changed_kind_replaces_the_block():
    merged = lay({"train": {"tuner": {"kind": "lora", "r": 16}}}, {"train": {"tuner": {"kind": "full"}}})
    assert merged.data == {"train": {"tuner": {"kind": "full"}}}
    assert merged.origins == {("train", "tuner", "kind"): "layer 1"}


def test_the_same_kind_merges():
    merged = lay({"train": {"tuner": {"kind": "lora", "r": 16}}}, {"train": {"tuner": {"kind": "lora", "alpha": 2}}})
    assert merged.data["train"]["tuner"] == {"kind": "lora", "r": 16, "alpha": 2}


def test_a_source_turns_from_part_to_file():
    merged = lay({"data": {"train": {"kind": "sums", "n": 3}}}, {"data": {"train": {"path": "a.jsonl"}}})
    assert merged.data["data"]["train"] == {"path": "a.jsonl"}


def test_a_budget_is_never_mixed():
    assert lay({"budget": {"epochs": 2}}, {"budget": {"tokens": 5}}).data == {"budget": {"tokens": 5}}


def test_lists_are_replaced():
    assert lay({"compare": {"seeds": [0, 1]}}, {"compare": {"seeds": [2]}}).data == {"compare": {"seeds": [2]}}


def test_layers_are_not_changed_by_merging():
    below = {"data": {"columns": {"a": "b"}}}
    lay(below, {"data": {"columns": {"c": "d"}}})
    assert below == {"data": {"columns": {"a": "b"}}}


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"trian": {}}, "Did you mean `train`"),
        ({"train": {"optimzer": {}}}, "Did you mean `train.optimizer`"),
        ({"train": {"batch": {"record": 3}}}, "Did you mean `train.batch.records`"),
        ({"data": {"train": {"path": "a", "column": {}}}}, "Did you mean `data.train.columns`"),
        ({"budget": {"flops": 3}}, "Keys of `budget`: epochs, records"),
        ({"pipeline": {}}, "Keys of a recipe: name"),
    ],
)
def test_unknown_keys_name_the_nearest(block, message):
    with pytest.raises(RecipeError, match=message):
        check_keys(Layer(block, "recipe r.yaml", Path()))


def test_an_unknown_key_names_its_line():
    with pytest.raises(RecipeError, match=r"recipe r\.yaml:7: there is no key `sed`"):
        check_keys(Layer({"sed": 1}, "recipe r.yaml", Path(), {("sed",): 7}))


def test_overrides_are_yaml_values_on_dotted_paths():
    texts = [
        "train.optimizer.lr=5e-5",
        "data.test=null",
        "compare.seeds=[1, 2]",
        "model=./a=b",
        "train.batch.records=4",
    ]
    assert parse_overrides(texts) == {
        "train": {"optimizer": {"lr": 5e-5}, "batch": {"records": 4}},
        "data": {"test": None},
        "compare": {"seeds": [1, 2]},
        "model": "./a=b",
    }


def test_paths_to_tune_stay_whole():
    assert parse_overrides(["compare.tune.train.optimizer.lr=[1]"]) == {
        "compare": {"tune": {"train.optimizer.lr": [1]}}
    }


@pytest.mark.parametrize("text", ["x", "", "=3", "a..b=1", ".a=1", "a=[1", "a={b: 1, b: 2}"])
def test_malformed_overrides(text):
    with pytest.raises(RecipeError):
        parse_overrides([text])


@pytest.mark.parametrize("pair", [["a=1", "a=2"], ["a=1", "a.b=2"], ["a.b=2", "a=1"]])
def test_a_key_written_twice_on_the_command_line(pair):
    with pytest.raises(RecipeError, match="already writes"):
        parse_overrides(pair)


@given(st.lists(st.text(alphabet="ab.=:[]{}\"'5e-% \n", max_size=20), max_size=4))
def test_any_override_is_read_or_refused(texts):
    with contextlib.suppress(RecipeError):
        parse_overrides(texts)


def test_options_of_a_generated_source_can_be_overridden():

    content = {"model": "nano", "data": {"train": {"kind": "orders", "count": 10}}}
    assert load_recipe(content, overrides=["data.train.count=80"]).data["data"]["train"]["count"] == 80
    with pytest.raises(RecipeError, match=r"no option `cuont`"):
        load_recipe(content, overrides=["data.train.cuont=80"])
    with pytest.raises(RecipeError, match=r"colums"):
        load_recipe({"model": "nano", "data": {"train": "a.jsonl"}}, overrides=["data.train.colums={prompt: q}"])
