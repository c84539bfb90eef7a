import pytest
from pydantic import ValidationError

from luthier.recipe.settings import BudgetSettings, Settings, expand

SHORT = {"model": "./m", "data": {"train": "a.jsonl"}}


def settings(**blocks):
    return Settings.model_validate({**SHORT, **blocks})


def test_five_keys_are_enough():
    made = settings()
    assert made.model.path == "./m"
    assert made.data.train["path"] == "a.jsonl"
    assert made.train.objective == {"kind": "sft"}
    assert (made.budget.unit, made.budget.amount) == ("epochs", 2)


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        settings().seed = 3


@pytest.mark.parametrize(
    ("blocks", "path", "expected"),
    [
        ({"train": {"tuner": "full"}}, "train.tuner", {"kind": "full"}),
        ({"train": {"tuner": ["lora", {"kind": "full"}]}}, "train.tuner", [{"kind": "lora"}, {"kind": "full"}]),
        ({"evaluate": {"metric": "auto"}}, "evaluate.metric", "auto"),
        ({"evaluate": {"metric": "exact"}}, "evaluate.metric", {"kind": "exact"}),
        (
            {"train": {"objective": ["sft", {"kind": "dft", "coefficient": 0.5}]}},
            "train.objective",
            [{"objective": {"kind": "sft"}, "coefficient": 1.0}, {"objective": {"kind": "dft"}, "coefficient": 0.5}],
        ),
        ({"data": {"train": "./make.py"}}, "data.train", {"kind": "./make.py"}),
        ({"data": {"train": {"kind": "made", "n": 3}}}, "data.train", {"kind": "made", "n": 3}),
        ({"data": {"train": "a", "test": "20%"}}, "data.test", "20%"),
        ({"data": {"train": "a", "test": 1e2}}, "data.test", 100),
        ({"data": {"train": "a", "test": None}}, "data.test", None),
        ({"budget": {"tokens": 1e6}}, "budget.tokens", 1_000_000),
        ({"train": {"save": {"every": None}}}, "train.save.every", None),
        ({"compare": {"seeds": [0, 2]}}, "compare.seeds", [0, 2]),
    ],
)
def test_forms_of_values(blocks, path, expected):
    found = settings(**blocks)
    for piece in path.split("."):
        found = getattr(found, piece)
    assert found == expected


def test_the_name_of_a_bundled_data_set_is_a_kind(monkeypatch):
    from luthier import parts

    entry = parts.Entry("dataset", "sums", None, "Sums", "", ())
    monkeypatch.setattr(parts, "catalogue", lambda slot: (entry,))
    full = expand({"data": {"train": "sums", "test": "sum"}, "evaluate": {"retain": "sums"}})
    assert full == {
        "data": {"train": {"kind": "sums"}, "test": {"path": "sum"}},
        "evaluate": {"retain": {"kind": "sums"}},
    }


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"budget": {"epochs": 1, "tokens": 5}}, "found epochs and tokens"),
        ({"budget": {}}, "found none"),
        ({"budget": {"epochs": -1}}, "greater than 0"),
        ({"budget": {"updates": 1.5}}, "integer"),
        ({"data": {"train": "a", "test": "110%"}}, "between 0% and 100%"),
        ({"data": {"train": "a", "test": 0}}, "expected a share"),
        ({"data": {"train": "a", "test": True}}, "expected a share"),
        ({"data": {"train": "a", "max_tokens": "12"}}, "integer"),
        ({"model": {"path": "m", "remote_code": "yes"}}, "boolean"),
        ({"train": {"tuner": []}}, "empty"),
        ({"train": {"tuner": 3}}, "name of a part"),
        ({"train": {"objective": [{"objective": "sft", "weight": 1}]}}, "coefficient"),
        ({"train": {"objective": [{"kind": "sft", "coefficient": "x"}]}}, "is a finite number"),
        ({"train": {"batch": {"micro": 0}}}, "auto"),
        ({"compare": {"seeds": 0}}, "at least one seed"),
        ({"compare": {"seeds": [1, 1]}}, "twice"),
        ({"compare": {"methods": []}}, "at least 1"),
        ({"compare": {"tune": {"seeds": 1}}}, "path"),
        ({"compare": {"tune": {"train.optimizer.lr": 5e-5}}}, "needs a list"),
        ({"compare": {"learning_rate": "tune"}}, "needs values"),
        ({"compare": {"learning_rate": "same", "tune": {"a.b": [1]}}}, "exclude each other"),
        ({"compare": {"axes": {"data.train.limit": []}}}, "needs a list"),
        ({"generate": {"temperature": float("inf")}}, "finite"),
        ({"name": "a/b"}, "pattern"),
        ({"observe": ["wandb"]}, "progress"),
    ],
)
def test_wrong_values_are_refused(blocks, message):
    with pytest.raises(ValidationError, match=message):
        settings(**blocks)


def test_values_to_tune_choose_the_rule():
    compare = settings(compare={"tune": {"train.optimizer.lr": [1e-5]}}).compare
    assert compare.learning_rate == "tune"
    assert compare.tune == {"train.optimizer.lr": [1e-5], "seeds": 1}


def test_a_budget_knows_its_unit():
    assert (BudgetSettings(seconds=60).unit, BudgetSettings(seconds=60).amount) == ("seconds", 60)


def test_shorthands_leave_the_original_alone():
    original = {"model": "m", "data": {"train": "a"}}
    expand(original)
    assert original == {"model": "m", "data": {"train": "a"}}


def test_writing_out_twice_changes_nothing():
    once = expand({**SHORT, "train": {"objective": ["sft"], "tuner": "lora"}})
    assert expand(once) == once
