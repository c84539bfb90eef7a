"""The grammar of pipelines: names, references, shares, and what each step's recipe is."""

import pytest

from luthier.errors import RecipeError
from luthier.recipe import load_recipe, stages_of
from luthier.recipe.steps import check_steps

BASE = {"model": "nano", "data": {"train": {"kind": "sums", "count": 20}}, "budget": {"epochs": 4}}


def load(steps, **more):
    return load_recipe({**BASE, **more, "steps": steps})


def test_a_recipe_without_steps_is_one_step():
    assert [stage.do for stage in stages_of(load_recipe(BASE))] == ["train"]
    assert [stage.do for stage in stages_of(load_recipe({**BASE, "rl": {"refill": 1}}))] == ["rl"]


def test_shares_divide_the_budget_and_what_is_left():
    stages = stages_of(load({"a": {"do": "train", "share": 0.5}, "b": {"do": "train"}, "c": {"do": "train"}}))
    assert [stage.recipe.settings.budget.epochs for stage in stages] == [2.0, 1.0, 1.0]
    loop = stages_of(load({"a": {"do": "loop", "rounds": 2, "steps": {"train": {}}}}))[0]
    assert loop.body[0].recipe.settings.budget.epochs == 2.0


def test_a_step_lays_its_blocks_over_the_recipe():
    steps = {"warm": {"do": "train"}, "polish": {"do": "train", "train": {"tuner": "full", "optimizer": {"lr": 1e-5}}}}
    warm, polish = stages_of(load(steps, train={"tuner": {"kind": "lora", "r": 4}, "batch": {"records": 3}}))
    assert warm.recipe.settings.train.tuner["r"] == 4
    assert polish.recipe.settings.train.tuner == {"kind": "full"}
    assert polish.recipe.settings.train.optimizer["lr"] == 1e-5
    assert polish.recipe.settings.train.batch.records == 3
    assert polish.recipe.settings.steps is None


def test_rl_and_train_steps_differ_in_one_block():
    stages = stages_of(load({"a": {"do": "train"}, "b": {"do": "rl", "rl": {"refill": 2}}}, rl={"updates": 3}))
    assert stages[0].recipe.settings.rl is None
    assert (stages[1].recipe.settings.rl.refill, stages[1].recipe.settings.rl.updates) == (2, 3)


def test_overrides_reach_a_step():
    recipe = load_recipe({**BASE, "steps": {"a": {"do": "train"}}}, overrides=["steps.a.train.objective=dft"])
    assert stages_of(recipe)[0].recipe.settings.train.objective["kind"] == "dft"


@pytest.mark.parametrize(
    "steps, said",
    [
        ({}, "ordered block"),
        ({"base": {"do": "train"}}, "cannot name a step"),
        ({"a": {"do": "trian"}}, "did you mean `train`"),
        ({"a": {"do": "train", "form": "base"}}, "did you mean `from`"),
        ({"a": {"do": "train", "from": "b"}, "b": {"do": "train"}}, "'b' is not known here; known: base, newest"),
        ({"a": {"do": "generate"}, "b": {"do": "train", "data": "nowhere"}}, "known: data, a"),
        ({"a": {"do": "train", "data": "chunk"}}, "'chunk' is not known"),
        ({"a": {"do": "train", "share": 0.7}, "b": {"do": "train", "share": 0.7}}, "add up to 1.4"),
        ({"a": {"do": "train", "share": 0}}, "above 0"),
        ({"a": {"do": "train", "probe": {"every": 0}}}, "every so many updates"),
        ({"a": {"do": "train", "model": "small"}, "b": {"do": "train", "from": "a"}}, "'a' is not known here"),
        ({"g": {"do": "generate"}, "a": {"do": "train", "model": "small", "data": "g"}}, "leave out from and data"),
        ({"a": {"do": "generate"}, "b": {"do": "score", "data": "a"}}, "no step trains"),
        ({"a": {"do": "generate", "samples": 0}}, "samples"),
        ({"a": {"do": "generate", "instruction": "hello"}}, "{prompt}"),
        ({"a": {"do": "select"}}, "subset"),
        ({"a": {"do": "score", "entropy": "yes"}}, "entropy: expected true or false"),
        ({"a": {"do": "score", "subset": "right"}}, "it has from, data, entropy, reward"),
        ({"a": {"do": "score"}, "b": {"do": "train", "data": "a"}}, "'a' is not known here"),
        ({"a": {"do": "loop"}}, "needs `steps`"),
        ({"a": {"do": "loop", "rounds": 0, "steps": {"train": {}}}}, "rounds"),
        ({"a": {"do": "loop", "carry": "yes", "steps": {"train": {}}}}, "carry"),
        ({"a": {"do": "loop", "steps": {"b": {"do": "train"}, "c": {"do": "train"}}}}, "exactly one step"),
    ],
)
def test_mistakes_are_named(steps, said):
    with pytest.raises(ValueError) as error:
        check_steps(steps)
    assert said in str(error.value)


@pytest.mark.parametrize(
    "steps, said",
    [
        ({"a": {"do": "train", "train": {"objectve": "dft"}}}, "step a: there is no key `train.objectve`"),
        ({"a": {"do": "train", "train": {"optimizer": {"lrr": 1}}}}, "no option `lrr`"),
        ({"a": {"do": "select", "subset": "first_rihgt"}, "b": {"do": "train"}}, "step a: subset: There is no subset"),
    ],
)
def test_mistakes_inside_a_step_show_when_the_recipe_is_read(steps, said):
    with pytest.raises(RecipeError) as error:
        load(steps)
    assert said in str(error.value)


def test_a_mistake_inside_a_step_is_told_with_file_and_line(tmp_path):
    """The blocks of a step are checked after the recipe's own; their messages name the line all the same."""
    start = "model: nano\ndata: {train: {kind: sums, count: 40}}\nbudget: {updates: 3}\nsteps:\n"
    body = {
        "  warm: {do: train}\n  last:\n    do: train\n    train:\n      objectve: dft\n": "9: step last: there is",
        "  warm: {do: train}\n  last:\n    do: train\n    train:\n      optimizer:\n        lrr: 1\n": "10: step last",
        "  warm: {do: train}\n  kept:\n    do: select\n    subset: rihgt\n": "8: step kept: subset",
        "  warm: {do: train}\n  polish: {from: base}\n": "6: step `polish` has no `do`, and its name is no verb",
        "  rounds: {do: loop, steps: {\n    warm: {do: train,\n      train: {objectve: dft}}}}\n": "7: step warm",
    }
    for text, told in body.items():
        (tmp_path / "mine.yaml").write_text(start + text)
        with pytest.raises(RecipeError) as error:
            load_recipe(tmp_path / "mine.yaml")
        assert f"recipe mine.yaml:{told}" in str(error.value)


PIPELINES = ["fare", "grape", "s2l", "s3ft", "two_stage"]


@pytest.mark.parametrize("name", PIPELINES)
def test_a_method_that_is_a_pipeline_is_refused_on_a_recipe_with_steps(name):
    content = {**BASE, "steps": {"warm": {"do": "train"}, "learn": {"do": "train"}}}
    with pytest.raises(RecipeError, match=f"`{name}` is a pipeline .*steps of its own .warm, learn; recipe") as error:
        load_recipe(content, methods=[name])
    assert f"luthier methods {name}" in error.value.hint
    whole = load_recipe(BASE, methods=[name])
    again = load_recipe(whole.to_lock(), methods=[name])  # its own steps are no others
    assert list(again.settings.steps) == list(whole.settings.steps)


def test_two_pipelines_are_not_one(tmp_path):
    with pytest.raises(RecipeError, match=r"`fare` \(rounds\) and `s2l` \(proxy, chosen, train\) are both pipelines"):
        load_recipe(BASE, methods=["fare+s2l"])
    (tmp_path / "wide.yaml").write_text("about: wide\nmethod: {steps: {train: {train: {batch: {records: 3}}}}}\n")
    stages = stages_of(load_recipe(BASE, methods=["s3ft+wide+dft"], base=tmp_path))
    assert stages[-1].recipe.settings.train.batch.records == 3  # a change of its blocks is no pipeline
    assert stages[-1].recipe.settings.train.objective["kind"] == "dft"


def test_every_pipeline_of_the_package_is_tried_here():
    from luthier.recipe import list_methods
    from luthier.recipe.methods import steps_of

    assert [method.name for method in list_methods() if steps_of(method)] == PIPELINES
