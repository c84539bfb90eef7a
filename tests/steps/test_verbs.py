"""Verbs in files of the user's: a new verb is one file, and everything finds it there."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier import parts
from luthier.engine.trainer import Trainer
from luthier.errors import RecipeError, RunError
from luthier.recipe import load_recipe, stages_of
from luthier.recipe.steps import keys_of
from luthier.run_folder import read_json, read_jsonl
from luthier.steps.run import run_recipe
from luthier.steps.verb_page import renewed
from luthier.steps.verbs.base import Verb

AVERAGE = Path(__file__).parents[2] / "examples" / "average.py"
LENGTHS = """from typing import ClassVar
from luthier.run_folder import read_json, write_json
from luthier.recipe.steps import DATA
from luthier.steps.verbs.base import Data, Verb

class Lengths(Verb):
    '''How many tokens each record has, and the records that have at most so many.'''
    LEAVES: ClassVar = ("records",)
    COLUMNS: ClassVar = ("length",)
    data: Data = DATA
    most: int = 1000

    def run(self, work, stage, folder):
        path, candidates = folder / "lengths.json", work.inputs(stage)
        if not path.is_file():
            write_json(path, {candidate.row.id: len(candidate.row.ids) for candidate in candidates})
        work.columns["length"] = read_json(path)
        work.records[stage.name] = [one for one in candidates if len(one.row.ids) <= self.most]
        work.note(stage, folder, {"counted": len(work.columns["length"])})
"""
SHORT = """from typing import ClassVar
from luthier.select.subset import Subset

class Short(Subset):
    '''The four shortest records.'''
    READS: ClassVar = ("length",)

    def choose(self, candidates, columns, seed):
        lengths = [columns["length"][candidate.row.id] for candidate in candidates]
        return sorted(range(len(candidates)), key=lengths.__getitem__)[:4]
"""


@pytest.fixture
def data(tmp_path):
    words = [f"{a}{b}" * n for a in "abc" for b in "fg" for n in (1, 2)]
    lines = [json.dumps({"prompt": f"reverse {word}", "completion": word[::-1]}) for word in words]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "lengths.py").write_text(LENGTHS)
    (tmp_path / "short.py").write_text(SHORT)
    shutil.copy(AVERAGE, tmp_path / "average.py")
    return tmp_path


def recipe(folder, steps, **more):
    content = {
        "model": {"path": "nano", "dtype": "float32"},
        "data": {"train": "data.jsonl", "validation": None, "test": None},
        "train": {"tuner": "full", "batch": {"records": 4}, "save": {"every": 1}, "precision": "float32"},
        "budget": {"records": 24},
        "evaluate": {"metric": "exact", "perplexity": False},
        "generate": {"max_new_tokens": 3},
        "steps": steps,
    }
    return load_recipe({**content, **more}, base=folder)


def weights(folder):
    return load_file(next((folder / "model").glob("*.safetensors")))


TRAINED = {"one": {"do": "train"}, "other": {"do": "train", "from": "base", "train": {"objective": "dft"}}}
MEAN = {"do": "./average.py", "models": ["one", "other"]}


def test_a_verb_of_ones_own_leaves_a_model(data):
    """The mean of two branches is the mean of the two models that those steps leave alone."""
    record = run_recipe(recipe(data, {**TRAINED, "mean": MEAN}), data / "mean", [])
    half = {"budget": {"records": 12}}
    for name, block in TRAINED.items():
        run_recipe(recipe(data, {name: block}, **half), data / name, [])
    one, other, mean = (weights(data / name) for name in ("one", "other", "mean"))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    for name, weight in mean.items():
        torch.testing.assert_close(weight, (one[name] + other[name]) / 2, rtol=0, atol=1e-7)
    assert record["steps"]["mean"] == {"do": "./average.py", "models": ["one", "other"]}
    assert record["train"]["updates"] == 6 and record["status"] == "done"


def test_a_model_that_a_later_step_names_is_kept(data):
    """What `mean` makes of `one` is a copy, since `late` starts from `one`; the base stays what it was too."""
    late = {"do": "train", "from": "one", "share": 0.2}
    run_recipe(recipe(data, {**TRAINED, "mean": MEAN, "late": late}, budget={"updates": 10}), data / "all", [])
    without = {**TRAINED, "late": late}
    run_recipe(recipe(data, without, budget={"updates": 10}), data / "without", [])
    first, second = weights(data / "all"), weights(data / "without")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_was_stopped_behind_a_verb_of_ones_own_goes_on_to_the_same_bits(data, monkeypatch):
    steps = {**TRAINED, "mean": MEAN, "counted": {"do": "./lengths.py"}}
    steps |= {"short": {"do": "select", "subset": "./short.py"}, "polish": {"do": "train", "data": "short"}}
    settings = recipe(data, steps, budget={"updates": 9})
    whole = run_recipe(settings, data / "whole", [])
    one, calls = Trainer._one_update, iter(range(1, 100))

    def asked(self):
        if next(calls) == 8:  # in the last training
            os.kill(os.getpid(), signal.SIGINT)
        return one(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_one_update", asked)
        assert run_recipe(settings, data / "broken", [])["status"] == "stopped"
    again = run_recipe(settings, data / "broken", [])
    first, second = weights(data / "whole"), weights(data / "broken")
    assert again["status"] == "done" and all(torch.equal(first[name], second[name]) for name in first)
    losses = [[line["loss"] for line in read_jsonl(data / name / "metrics.jsonl")] for name in ("whole", "broken")]
    assert losses[0] == losses[1] and len(losses[0]) == 9
    assert whole["steps"]["mean"] == again["steps"]["mean"]
    assert whole["steps"]["polish"]["weights_id"] == again["steps"]["polish"]["weights_id"]
    assert whole["steps"]["polish"]["weights_id"] != whole["steps"]["one"]["weights_id"]


def test_a_choice_reads_the_column_of_a_verb_of_ones_own(data):
    steps = {"counted": {"do": "./lengths.py"}, "short": {"do": "select", "subset": "./short.py"}}
    record = run_recipe(recipe(data, {**steps, "learn": {"do": "train", "data": "short"}}), data / "run", [])
    lengths = read_json(data / "run" / "steps" / "counted" / "lengths.json")
    kept = read_json(data / "run" / "steps" / "short" / "kept.json")
    assert record["steps"]["counted"] == {"do": "./lengths.py", "counted": 12}
    assert [lengths[row] for row in kept["rows"]] == sorted(lengths.values())[:4]
    assert "looked_rows" not in kept  # nothing was computed for it


def test_records_of_a_verb_of_ones_own_are_trained_on(data):
    steps = {"few": {"do": "./lengths.py", "most": 1}, "learn": {"do": "train", "data": "few"}}
    with pytest.raises(RunError, match="`few` has no record"):
        run_recipe(recipe(data, steps), data / "run", [])


def test_the_lock_holds_the_text_of_a_verb(data):
    settings = recipe(data, {**TRAINED, "mean": MEAN})
    assert settings.text_of_parts["./average.py"] == AVERAGE.read_text()
    (data / "average.py").write_text("broken")
    again = load_recipe(settings.to_lock())
    assert [type(stage.verb).__name__ for stage in stages_of(again)] == ["Train", "Train", "Average"]


def test_a_verb_is_found_from_the_file_that_names_it(data):
    """A recipe in another folder extends one whose verb is a file beside it."""
    blocks = "model: nano\ndata: {train: data.jsonl}\n"
    steps = "steps: {counted: {do: ./lengths.py}, learn: {do: train, data: counted}}\n"
    (data / "base.yaml").write_text(blocks + steps)
    (data / "inner").mkdir()
    (data / "inner" / "mine.yaml").write_text("extends: ../base.yaml\nseed: 3\n")
    stages = stages_of(load_recipe(data / "inner" / "mine.yaml"))
    assert [type(stage.verb).__name__ for stage in stages] == ["Lengths", "Train"]
    assert stages[0].block["do"] == "../lengths.py"


OBJECTIVE = "from luthier import TokenObjective\n\nclass Lossy(TokenObjective):\n    '''A loss.'''\n"


@pytest.mark.parametrize(
    "step, said",
    [
        ({"do": "./avrage.py"}, "step `mean`: verb: there is no file"),
        ({"do": "./lossy.py"}, "step `mean`: Lossy in ./lossy.py is no verb. Derive it from Verb"),
        ({"do": "./odd.py"}, "step `mean`: Odd in ./odd.py: LEAVES names `modle`. A step leaves `model` or `records`"),
        ({"do": "./average.py"}, "step `mean`: a step that does `./average.py` needs `models`"),
        ({"do": "./average.py", "models": ["one"]}, "step `mean`: models: "),
        ({"do": "./average.py", "models": ["one", "two"]}, "models: 'two' is not known here; known: base, newest, one"),
        ({"do": "./average.py", "model": []}, "has no key `model`: did you mean `models`"),
        ({"do": "./lengths.py", "most": "9"}, "step `mean`: most: expected a whole number, found '9'"),
        ({"do": "./lengths.py", "data": "mean"}, "data: 'mean' is not known here; known: data"),
    ],
)
def test_mistakes_in_a_step_of_ones_own_are_named(data, step, said):
    (data / "lossy.py").write_text(OBJECTIVE)
    verb = "from luthier.steps.verbs.base import Verb\n\nclass Odd(Verb):\n    LEAVES = ('modle',)\n"
    (data / "odd.py").write_text(verb)
    with pytest.raises(RecipeError) as error:
        recipe(data, {**TRAINED, "mean": step})
    assert said in str(error.value)


def test_a_mistake_names_the_line_of_its_key(data):
    steps = "  learn: {do: train}\n  ask:\n    do: generate\n    samples: none\n"
    (data / "mine.yaml").write_text(f"model: nano\ndata: {{train: data.jsonl}}\nsteps:\n{steps}")
    with pytest.raises(RecipeError, match=r"mine.yaml:7: step `ask`: samples: expected a whole number, found 'none'"):
        load_recipe(data / "mine.yaml")


def test_a_tuning_that_cannot_be_merged_is_refused_before_it_is_averaged(data):
    tuner = {"train": {"tuner": {"kind": "loramoe"}}}
    with pytest.raises(RecipeError, match="`mean` changes the model of step `other`, and `loramoe` cannot be merged"):
        steps = {"one": TRAINED["one"], "other": {**TRAINED["other"], "train": tuner["train"]}, "mean": MEAN}
        run_recipe(recipe(data, steps), data / "run", [])


@pytest.mark.parametrize("name", [entry.name for entry in parts.catalogue("verb")])
def test_every_key_of_a_verb_is_described(name):
    verb = parts.load("verb", name)
    assert issubclass(verb, Verb) and verb.SLOT == "verb"
    assert [key for key, field in keys_of(verb).items() if not field.description] == []
    assert set(verb.OVERLAYS) <= set(keys_of(verb))


def test_the_page_of_pipelines_has_the_keys_of_all_verbs():
    page = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text()
    assert renewed(page) == page, "run `python -m luthier.steps.verb_page docs/pipelines.md`"
    with pytest.raises(ValueError, match="lacks"):
        renewed(page.replace("<!-- /verbs -->", ""))
