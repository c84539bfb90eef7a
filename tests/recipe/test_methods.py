from pathlib import Path

import pytest

from luthier.errors import RecipeError
from luthier.recipe import list_methods, load_recipe, method_label
from luthier.recipe.methods import slot_of_file

MINE = '''
"""My loss."""
from luthier import TokenObjective


class Mine(TokenObjective):
    """Mine."""

    def token_loss(self, view):
        return -view.logprob
'''


def test_a_method_overrides_and_advises(workshop):
    recipe = load_recipe(workshop.recipe(), ["dft"])
    assert recipe.data["train"]["objective"]["kind"] == "dft"
    assert recipe.origins["train.objective.kind"] == "method dft"
    assert recipe.data["train"]["optimizer"]["lr"] == 5e-5
    assert recipe.origins["train.optimizer.lr"] == "advice of dft"
    assert recipe.data["budget"] == {"epochs": 3}
    assert recipe.origins["budget.epochs"] == "advice of dft"


@pytest.mark.parametrize("written", ["recipe", "command line", "extends"])
def test_advice_gives_way_to_what_the_user_wrote(workshop, written):
    text = "train: {optimizer: {lr: 1e-3}}\nbudget: {tokens: 100}"
    overrides = []
    if written == "extends":
        workshop.recipe(text, "base.yaml")
        workshop.write("mine.yaml", "extends: base.yaml")
    elif written == "recipe":
        workshop.recipe(text)
    else:
        workshop.recipe()
        overrides = ["train.optimizer.lr=1e-3", "budget.tokens=100"]
    recipe = load_recipe("mine.yaml", ["dft"], overrides)
    assert recipe.data["train"]["optimizer"]["lr"] == 1e-3
    assert recipe.data["budget"] == {"tokens": 100}


def test_advice_is_for_the_part_it_was_written_for(workshop):
    workshop.write("warm.yaml", "about: x\nmethod: {seed: 1}\nadvice: {train: {schedule: {warmup: 0.5}}}\n")
    assert load_recipe(workshop.recipe(), ["warm"]).data["train"]["schedule"]["warmup"] == 0.5
    other = load_recipe(workshop.recipe("train: {schedule: linear}"), ["warm"])
    assert other.origins["train.schedule.warmup"] == "default"


def test_advice_on_the_methods_own_part(workshop):
    workshop.write("own.yaml", "about: x\nmethod: {train: {tuner: full}}\nadvice: {train: {tuner: {}}}\n")
    assert load_recipe(workshop.recipe(), ["own"]).data["train"]["tuner"]["kind"] == "full"
    workshop.write("small.yaml", "about: x\nmethod: {train: {tuner: lora}}\nadvice: {train: {tuner: {r: 2}}}\n")
    assert load_recipe(workshop.recipe(), ["small"]).data["train"]["tuner"]["r"] == 2


def test_methods_compose(workshop):
    recipe = load_recipe(workshop.recipe(), ["dft+lora8"])
    assert (recipe.data["train"]["objective"]["kind"], recipe.data["train"]["tuner"]["r"]) == ("dft", 8)
    assert recipe.origins["train.tuner.r"] == "method lora8"


@pytest.mark.parametrize("names", [["dft+sft"], ["dft", "sft"], ["dft+dft"]])
def test_two_methods_that_write_one_key(workshop, names):
    with pytest.raises(RecipeError, match=r"`dft` and `[sd]ft` both write `train\.objective\.kind`"):
        load_recipe(workshop.recipe(), names)


def test_a_method_writing_a_block_over_anothers_key(workshop):
    workshop.write("sum.yaml", "about: x\nmethod: {train: {objective: [sft]}}\n")
    with pytest.raises(RecipeError, match=r"`dft` and `sum` both write `train\.objective`"):
        load_recipe(workshop.recipe(), ["dft+sum"])


def test_different_advice_for_one_key(workshop):
    workshop.write("slow.yaml", "about: x\nmethod: {seed: 1}\nadvice: {train: {optimizer: {lr: 1e-6}}}\n")
    with pytest.raises(RecipeError, match=r"`dft` and `slow` advise different values for `train\.optimizer\.lr`"):
        load_recipe(workshop.recipe(), ["dft+slow"])
    assert load_recipe("mine.yaml", ["dft+slow"], ["train.optimizer.lr=1"]).data["train"]["optimizer"]["lr"] == 1


def test_a_part_file_is_a_method(workshop):
    workshop.write("mine.py", MINE)
    recipe = load_recipe(workshop.recipe(name="r.yaml"), ["./mine.py+lora8"])
    assert Path(recipe.data["train"]["objective"]["kind"]).name == "mine.py"
    assert recipe.origins["train.objective.kind"] == "method mine"
    assert list(recipe.text_of_parts.values()) == [MINE]


def test_a_part_file_beside_a_recipe_elsewhere(workshop):
    workshop.write("deep/mine.py", MINE)
    recipe = load_recipe(workshop.recipe(name="deep/r.yaml"), ["./mine.py"])
    assert recipe.build_parts()["train.objective"].kind == "mine"


@pytest.mark.parametrize(
    ("base", "slot"),
    [("Objective", "objective"), ("SequenceObjective", "objective"), ("Tuner", "tuner"), ("Metric", "metric")],
)
def test_the_base_class_tells_the_slot(workshop, base, slot):
    path = workshop.write("mine.py", f"from luthier import {base}\nclass Mine({base}): ...\n")
    assert slot_of_file(path) == slot


def test_a_part_may_derive_from_a_part(workshop):
    path = workshop.write("mine.py", "from luthier.tuners.lora import LoRA as Base\nclass Mine(Base): ...\n")
    assert slot_of_file(path) == "tuner"


@pytest.mark.parametrize(
    "text", ["class Mine: ...\n", "class Mine(Other): ...\n", "class Other: ...\n", "class Mine(:\n"]
)
def test_part_files_that_are_none(workshop, text):
    workshop.write("mine.py", text)
    with pytest.raises(RecipeError, match=r"mine\.py"):
        load_recipe(workshop.recipe(name="r.yaml"), ["./mine.py"])


def test_a_metric_is_no_method(workshop):
    workshop.write("mine.py", "from luthier import Metric\nclass Mine(Metric): ...\n")
    with pytest.raises(RecipeError, match="is a metric, not a method"):
        load_recipe(workshop.recipe(name="r.yaml"), ["./mine.py"])


def test_unknown_methods_name_the_nearest(workshop):
    with pytest.raises(RecipeError, match="Did you mean `dft`"):
        load_recipe(workshop.recipe(), ["dtf"])
    with pytest.raises(RecipeError, match=r"no method file \./gone\.py"):
        load_recipe(workshop.recipe(), ["./gone.py"])


def test_a_recipe_beside_the_recipe_is_no_method(workshop):
    workshop.recipe(name="sft.yaml")
    assert load_recipe("sft.yaml", ["sft"]).origins["train.objective.kind"] == "method sft"


def test_a_name_must_not_hide_a_packaged_method(workshop):
    workshop.write("dft.yaml", "about: x\nmethod: {seed: 1}\n")
    with pytest.raises(RecipeError, match="exists twice"):
        load_recipe(workshop.recipe(), ["dft"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("about: x\nmethods: {}\nadvice: {seed: 1}", "Did you mean `method`"),
        ("method: {seed: 1}", "`about` is missing"),
        ("about: x\nmethod: {}", "sets nothing"),
        ("about: x\nmethod: 3", "must be a block"),
        ("about: x\nmethod: {trian: {}}", r"bad\.yaml:2: there is no key `trian`"),
        ("about: x\nadvice:\n  train:\n    optimzer: {}", r"bad\.yaml:4: there is no key `train\.optimzer`"),
    ],
)
def test_malformed_methods(workshop, text, message):
    workshop.write("bad.yaml", text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(workshop.recipe(), ["./bad.yaml"])


def test_the_list_of_methods(workshop):
    workshop.write("own.yaml", "about: x\nmethod: {seed: 1}\n")
    workshop.recipe()
    assert [method.name for method in list_methods(workshop.folder)] == ["dft", "lora8", "own", "sft"]


def test_labels():
    assert method_label("./losses/mine.py+lora8") == "mine+lora8"
    assert method_label("dft") == "dft"
