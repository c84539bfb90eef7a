import json

import pytest

from luthier.compare.plan import plan
from luthier.errors import RecipeError
from luthier.recipe import load_recipe


def test_methods_times_seeds_seed_by_seed(recipe):
    found = plan(recipe, methods=["sft", "dft"], seeds=[3, 5])
    tasks = found.runs({})
    assert [task.folder for task in tasks] == ["sft/seed-3", "dft/seed-3", "sft/seed-5", "dft/seed-5"]
    assert [load_recipe(task.recipe).settings.seed for task in tasks] == [3, 3, 5, 5]
    assert load_recipe(tasks[1].recipe).data["train"]["objective"]["kind"] == "dft"
    assert (found.bases[0].folder, found.bases[0].do) == ("shared/base", "evaluate")
    tried = {label: lock["recipe"]["train"]["objective"]["kind"] for label, lock in found.bases[0].methods.items()}
    assert tried == {"sft": "sft", "dft": "dft"}
    assert found.baseline == "sft"
    json.dumps(found.to_json())


def test_one_budget_for_all_whatever_a_method_advises(recipe):
    recipe.write_text("model: nano\ndata: {train: data.jsonl}\n")
    found = plan(recipe, methods=["sft", "wide"])
    assert [arm.settings["budget"] for arm in found.arms] == [{"epochs": 2.0}] * 2


@pytest.mark.parametrize(("rule", "expected"), [("same", [2e-4, 2e-4]), ("advice", [2e-4, 5e-5])])
def test_learning_rate_rules(recipe, rule, expected):
    found = plan(recipe, methods=["sft", "wide"], overrides=[f"compare.learning_rate={rule}"])
    assert [arm.learning_rate for arm in found.arms] == expected


def test_advice_does_not_overrule_what_the_user_wrote(recipe):
    overrides = ["compare.learning_rate=advice", "train.optimizer.lr=1e-3"]
    assert [arm.learning_rate for arm in plan(recipe, methods=["sft", "wide"], overrides=overrides).arms] == [1e-3] * 2


def test_tuning_sees_validation_only_and_the_winner_is_used(recipe):
    overrides = ["compare.tune={train.optimizer.lr: [1e-5, 1e-4], seeds: 1}", "train.optimizer.lr=1e-3"]
    found = plan(recipe, methods=["sft", "dft"], seeds=2, overrides=overrides)
    assert found.rule == "tune"
    assert [task.folder for _, _, task in found.tuning] == [
        "tune/sft/lr=1e-05/seed-0",
        "tune/sft/lr=0.0001/seed-0",
        "tune/dft/lr=1e-05/seed-0",
        "tune/dft/lr=0.0001/seed-0",
    ]
    assert {task.sets for _, _, task in found.tuning} == {("validation",)}
    runs = found.runs({"sft": 0, "dft": 1})
    rates = {task.folder: task.recipe["recipe"]["train"]["optimizer"]["lr"] for task in runs}
    assert rates == {"sft/seed-0": 1e-5, "dft/seed-0": 1e-4, "sft/seed-1": 1e-5, "dft/seed-1": 1e-4}
    assert [task.folder for task in found.runs({"dft": 1})] == ["dft/seed-0", "dft/seed-1"]


def test_axes_make_cells_and_a_base_for_each_set_of_items(recipe):
    overrides = ["compare.axes={data.train.limit: [50, 100]}"]
    found = plan(recipe, methods=["sft", "dft"], overrides=overrides)
    assert [arm.label for arm in found.arms] == [
        "sft, limit=50",
        "dft, limit=50",
        "sft, limit=100",
        "dft, limit=100",
    ]
    assert [arm.settings["data"]["train"]["limit"] for arm in found.arms] == [50, 50, 100, 100]
    assert [[*base.methods] for base in found.bases] == [
        ["sft, limit=50", "dft, limit=50"],
        ["sft, limit=100", "dft, limit=100"],
    ]
    limits = [lock["recipe"]["data"]["train"]["limit"] for base in found.bases for lock in base.methods.values()]
    assert limits == [50, 50, 100, 100]
    trained = plan(recipe, methods=["sft"], overrides=["compare.axes={train.batch.records: [8, 16]}"])
    assert len(trained.bases) == 1


def test_methods_compose_and_part_files_are_methods(recipe):
    (recipe.parent / "soft.py").write_text(
        "from luthier.objectives.base import TokenObjective\n\n\nclass Soft(TokenObjective):\n    power: float = 2.0\n"
    )
    found = plan(recipe, methods=["dft+wide", "./soft.py"])
    assert [arm.label for arm in found.arms] == ["dft+wide", "soft"]
    assert found.arms[0].settings["train"]["tuner"]["r"] == 64
    assert found.arms[1].settings["train"]["objective"]["kind"].endswith("soft.py")


def test_a_fingerprint_follows_what_is_computed(recipe):
    first = plan(recipe, methods=["sft"]).runs({})[0]
    assert plan(recipe, methods=["sft", "dft"], seeds=3).runs({})[0].fingerprint == first.fingerprint
    assert plan(recipe, methods=["sft"], overrides=["out=elsewhere"]).runs({})[0].fingerprint == first.fingerprint
    other = plan(recipe, methods=["sft"], overrides=["train.optimizer.lr=1e-3"]).runs({})[0]
    assert other.fingerprint != first.fingerprint
    (recipe.parent / "data.jsonl").write_text('{"text": "two"}\n')
    assert plan(recipe, methods=["sft"]).runs({})[0].fingerprint != first.fingerprint


def test_records_are_the_same_for_methods_that_read_other_columns(recipe):
    (recipe.parent / "typed.yaml").write_text(
        "about: by type\nmethod: {train: {tuner: {kind: loramoe, types: kind}}}\n"
    )
    planned = plan(recipe, methods=["sft", "typed"], overrides=["data.identity=[page]"])
    tasks = [*planned.runs({}), *planned.bases]
    assert [task.recipe["recipe"]["data"]["identity"] for task in tasks] == [["kind", "page"]] * len(tasks)
    assert [task.recipe["recipe"]["data"]["identity"] for task in plan(recipe, methods=["sft", "wide"]).bases] == [[]]


def test_a_recipe_is_loaded_once_whatever_the_number_of_seeds(recipe, monkeypatch):
    loads = []

    def counted(*arguments):
        loads.append((tuple(arguments[1]), tuple(arguments[2])))
        return load_recipe(*arguments)

    monkeypatch.setattr("luthier.compare.plan.load_recipe", counted)
    planned = plan(recipe, methods=["sft", "dft"], seeds=5)
    tasks = planned.runs({}) + planned.runs({})
    assert len(loads) == len(set(loads)) == 5  # the plain recipe; each method as it is and with a seed
    for task in tasks:
        lock = load_recipe(recipe, [task.method], [f"seed={task.seed}"]).to_lock()
        assert (task.seed, task.recipe) == (lock["recipe"]["seed"], lock)


def test_a_loaded_recipe_plans_the_same(recipe):
    loaded = load_recipe(recipe, [], ["train.optimizer.lr=1e-3"])
    ours, theirs = plan(loaded, methods=["dft"]), plan(recipe, methods=["dft"], overrides=["train.optimizer.lr=1e-3"])
    assert ours.runs({})[0].fingerprint == theirs.runs({})[0].fingerprint
    assert [arm.learning_rate for arm in plan(load_recipe(recipe), methods=["wide"]).arms] == [2e-4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": ["sft", "sft"]}, "named twice"),
        ({"methods": ["dtf"]}, "dft"),
        ({"methods": ["base"]}, "untrained"),
        ({"methods": ["sft", "dft"], "baseline": "dtf"}, "Did you mean `dft`"),
        ({"methods": ["sft"], "seeds": [1, 1]}, "named once"),
        ({"methods": ["sft"], "overrides": ["train.tuner.rr=3"]}, "rr"),
        ({"methods": ["sft"], "overrides": ["data.test=null"]}, "nothing is held out"),
        ({"overrides": ["data.validation=null", "compare.tune={train.optimizer.lr: [1e-5]}"]}, "tuning needs it"),
    ],
)
def test_mistakes_are_found_before_anything_runs(recipe, arguments, words):
    with pytest.raises(RecipeError, match=words):
        plan(recipe, **arguments)
