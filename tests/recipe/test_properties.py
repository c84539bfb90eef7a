"""Any recipe is resolved, or refused by an error that names what is wrong; never anything else."""

import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import LuthierError, RecipeError
from luthier.recipe import load_recipe
from luthier.recipe.merge import leaves

RECIPES = (
    {"model": "nano", "data": {"train": "a.jsonl"}, "budget": {"updates": 3}},
    {
        "model": {"path": "nano"},
        "data": {"train": {"kind": "strings", "count": 20}, "test": 5},
        "train": {"objective": "dft", "tuner": ["lora"], "select": "uds"},
        "compare": {"methods": ["sft", "dft"]},
        "reward": ["math", {"kind": "format", "pattern": "a", "weight": 0.1}],
        "rl": {"strategy": "prefix", "advantages": ["group_norm"]},
    },
    {
        "model": "nano",
        "data": {"train": "a.jsonl"},
        "steps": {
            "answers": {"do": "generate", "samples": 2},
            "kept": {"do": "select", "data": "answers", "subset": "right"},
            "again": {"do": "loop", "rounds": 2, "steps": {"train": {"train": {"objective": "sft"}}}},
        },
    },
)
FULL = [load_recipe(recipe).data for recipe in RECIPES]


def places(block, path=()):
    """The paths of all values of a recipe, blocks included."""
    for key, value in block.items() if isinstance(block, dict) else enumerate(block):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


KEYS = sorted({str(key) for recipe in FULL for path in places(recipe) for key in path} | {"", "a.b", "\x00", "extends"})
VALUES = [value for recipe in FULL for _, value in leaves(recipe)]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, 2**63, "\x00", "a\x00.py", "./x.py", "x" * 5000, "\ud800", "../..", "~", "é🎻"])
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(VALUES)
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def damaged(draw):
    """A recipe that is right but for one value, and the path of that one."""
    recipe = copy.deepcopy(draw(st.sampled_from([*RECIPES, *FULL])))
    path = draw(st.sampled_from(list(places(recipe))))
    if draw(st.integers(0, 4)) == 0 and not isinstance(path[-1], int):
        path = (*path[:-1], draw(st.sampled_from(KEYS)))
    block = recipe
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = draw(ANYTHING)
    return recipe, path


@given(damaged())
def test_one_wrong_value_is_refused_by_its_key_or_is_none(case):
    recipe, path = case
    try:
        loaded = load_recipe(recipe)
    except LuthierError as error:
        # What is wrong within `steps` is told of the step: "step `ask`: ...".
        keys = [str(key) for key in path] + [repr(key) for key in path] + ["step"] * (path[0] == "steps")
        assert any(key in str(error) for key in keys), (path, str(error))
    else:
        assert json.dumps(load_recipe(loaded.to_lock()).data) == json.dumps(loaded.data)  # which NaN would not equal


@given(st.dictionaries(st.sampled_from(KEYS), ANYTHING, max_size=4))
def test_any_block_is_resolved_or_refused(block):
    try:
        load_recipe({"model": "nano", "data": {"train": "a.jsonl"}, **block})
    except LuthierError as error:
        assert error.message


@given(st.sampled_from(RECIPES), st.data())
def test_any_damaged_text_is_resolved_or_refused_with_the_file(tmp_path_factory, recipe, data):
    text = json.dumps(recipe, indent=1)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 4))
        text = (
            text[:place]
            + data.draw(st.text(alphabet="a{}[],:\"'&*!|> \n\t-#5e\\\x00é", max_size=4))
            + text[place + length :]
        )
    file = tmp_path_factory.mktemp("any") / "mine.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_recipe(file)
    except LuthierError as error:
        assert error.message


PATHS = st.sampled_from([".".join(map(str, path)) for recipe in FULL for path in places(recipe)])


@given(st.lists(st.tuples(PATHS | st.text(max_size=12), ANYTHING | st.text(max_size=20)), max_size=3))
def test_any_override_is_taken_or_refused(pairs):
    def written(value):
        return value if isinstance(value, str) else json.dumps(value)

    try:
        load_recipe(RECIPES[1], overrides=[f"{path}={written(value)}" for path, value in pairs])
    except LuthierError as error:
        assert error.message


def test_what_no_file_holds_is_refused_in_words():
    endless: list = []
    endless.append(endless)
    base = RECIPES[0]
    for more, said in (
        ({"data": {"train": "a.jsonl", "test": endless}}, "nested more than 50 deep"),
        ({"data": {"train": "a\x00.jsonl"}}, "`data.train` holds the character NUL"),
        ({"model": "\ud800"}, "`model` holds half of a character"),
        ({"data": {1: 2}}, "data has the key 1, which is not text"),
        ({"\x00": 2}, "the recipe has the key '\\x00', which holds the character NUL"),
        ({"rl": {"advantages": [{"kind": "center", "": None}]}}, "rl.advantages.0: advantage `center` has no option"),
        *(
            ({"evaluate": {"sample": {"shift": value}}}, "evaluate.sample.shift")
            for value in (10**400, math.inf, math.nan)
        ),
        *(
            ({"train": {"objective": ["sft", {"objective": "dft", "coefficient": value}]}}, "is a finite number")
            for value in (10**400, math.inf, math.nan)
        ),
        ({"train": {"objective": "./" + "x" * 5000 + ".py"}}, "train.objective"),
        ({"extends": "x" * 5000}, "extends: There is no recipe"),
        ({"steps": {"a": {"do": {}}}}, "step `a` does `{}`"),
        ({"seed": 10**5000}, "seed"),
    ):
        with pytest.raises(RecipeError) as caught:
            load_recipe({**base, **more})
        assert said in str(caught.value)


def test_deep_yaml_is_refused_with_its_line(tmp_path):
    file = tmp_path / "deep.yaml"
    file.write_text("model: nano\ndata: " + "[" * 200 + "]" * 200)
    with pytest.raises(RecipeError, match=r"deep.yaml:2: blocks are nested more than 50 deep"):
        load_recipe(file)
