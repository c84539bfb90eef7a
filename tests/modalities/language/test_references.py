"""References of the model as training found it: read before training, or asked while it goes on."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from luthier.compare.results import _method_seconds
from luthier.engine import micro_batches as training
from luthier.engine import score as scoring
from luthier.engine.hidden_cache import HiddenStateCache
from luthier.errors import RecipeError
from luthier.run_folder import read_jsonl
from luthier.runs.run import Run
from luthier.steps.run import carry_out, run_recipe
from support.runs import recipe, run_recipe_until_killed, with_words


@pytest.fixture
def data(tmp_path):
    return with_words(tmp_path)


def test_a_reference_nobody_provides(data):
    (data / "wants_teacher.py").write_text(
        "from luthier import TokenObjective\n"
        "class WantsTeacher(TokenObjective):\n"
        "    READS = ('logits:teacher',)\n"
        "    def token_loss(self, view):\n"
        "        return -view.logprob\n"
    )
    with pytest.raises(RecipeError, match="reference called `teacher`"):
        run_recipe(recipe(data, "train.objective=./wants_teacher.py"), data / "run", [])


def test_reference_logprobs_are_scored_before_training_and_cached(data):
    (data / "margin.py").write_text(
        "from luthier import SequenceObjective\n"
        "class Margin(SequenceObjective):\n"
        "    READS = ('logprobs:initial',)\n"
        "    def sequence_loss(self, view):\n"
        "        gap = view.logprob - view.reference_logprob['initial']\n"
        "        view.update.meter('gap', gap.detach().abs().sum(), 'records')\n"
        "        return -gap.sigmoid().log()\n"
    )
    record = run_recipe(recipe(data, "train.objective=./margin.py"), data / "run", [])
    gaps = [line["gap"] for line in read_jsonl(data / "run" / "metrics.jsonl")]
    assert gaps[0] < 1e-3 < gaps[-1] and record["seconds"]["score"] > 0
    assert len(list((data / "run" / "shared" / "scores").glob("*.npz"))) == 1


@pytest.mark.parametrize(
    "changes, layout",
    [
        ([], "shared"),
        (["train.batch.layout=packed"], "packed"),
        (["train.batch.layout=padded"], "padded"),
        (["train.tuner=loramoe"], "padded"),  # it looks at whole records
    ],
)
def test_a_reference_reads_pairs_in_the_layout_in_which_they_are_trained(data, changes, layout, monkeypatch):
    """In bfloat16 another layout rounds otherwise, as far as half a nat in an answer's sum."""
    words = [f"{a}{b}{c}" for a in "abcd" for b in "fgh" for c in "kl"]
    prompt = "Write this word with its letters in the opposite order, from the last one to the first: "
    lines = [json.dumps({"prompt": prompt + w, "chosen": w[::-1], "rejected": w + w}) for w in words]
    (data / "data.jsonl").write_text("\n".join(lines) + "\n")
    read = {}
    for room in (scoring, training):
        monkeypatch.setattr(room, "micro_batches", seen_by(room.micro_batches, read.setdefault(room, [])))
    run_recipe(
        recipe(data, "train.objective=dpo", f"train.batch.layout={layout}", "budget.updates=1"), data / "run", []
    )
    assert abs(read_jsonl(data / "run" / "metrics.jsonl")[0]["loss"] - math.log(2)) < 1e-6
    assert read[scoring][0] == read[training][0] == layout


def seen_by(function, layouts):
    def wrapped(rows, tokens, layout):
        layouts.append(layout)
        return function(rows, tokens, layout)

    return wrapped


@pytest.mark.parametrize(
    "overrides, once",
    [
        (["budget={epochs: 2}"], True),
        (["budget={epochs: 2}", "train.tuner=full"], True),
        (["budget={epochs: 2}", "train.select={kind: uds, keep: 0.4}"], False),
        (["budget={epochs: 0.5}"], False),
        (["budget={seconds: 1}"], False),
    ],
)
def test_hidden_states_of_a_reference_are_computed_once_where_each_is_needed(data, overrides, once, monkeypatch):
    """Before training, in a file that goes when the run ends; else the model is asked at every update."""
    seen = []
    monkeypatch.setattr("luthier.engine.hidden_cache.HiddenStateCache.compute", counted(HiddenStateCache.compute, seen))
    settings = recipe(data, "train.objective=asft", *overrides)
    record = run_recipe(settings, data / "run", [])
    assert len(seen) == once and ("score" in record["seconds"]) == once
    assert next(line["kl"] for line in read_jsonl(data / "run" / "metrics.jsonl") if "kl" in line) < 1e-6
    assert not (data / "run" / "shared" / "states").exists()
    phases = [line["phase"] for line in read_jsonl(data / "run" / "progress.jsonl")]
    assert ("score" in phases) == once


def counted(function, seen):
    def counting(*given):
        seen.append(given)
        return function(*given)

    return counting


def test_what_was_computed_once_serves_a_resumed_run_and_may_be_computed_again(data):
    """The bits are those of a run that was never stopped."""
    settings = recipe(data, "train.objective=asft", "train.save.every=1", budget={"epochs": 1})
    run_recipe(settings, data / "whole", [])
    wanted = load_file(data / "whole" / "model" / "adapter_model.safetensors")
    for name in ("kept", "lost"):
        run_recipe_until_killed(settings, data / name)
        file, note = sorted((data / name / "shared" / "states").iterdir())
        assert note.name == f"{file.name}.json"
        if name == "lost":
            file.unlink()
        run_recipe(settings, data / name, [])
        found = load_file(data / name / "model" / "adapter_model.safetensors")
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_run_that_finds_them_counts_what_they_took(data):
    settings = recipe(data, "train.objective=asft", "train.save.every=1", budget={"epochs": 1})
    first, second = (carry_out(Run(settings, data / name, cache=data / "shared")) for name in ("one", "two"))
    assert second["reused_seconds"] == {"score": first["seconds"]["score"]} and "score" not in second["seconds"]
    assert first["reused_seconds"] == {}
    taken = [_method_seconds(record) - record["seconds"]["train"] for record in (first, second)]
    assert taken == pytest.approx([first["seconds"]["score"]] * 2)


HALF = """
from luthier.select.records.base import Subset


class Half(Subset):
    side: int = 0

    def choose(self, candidates, columns, seed):
        return range(self.side, len(candidates), 2)
"""


def test_models_that_were_trained_on_other_records_are_told_apart(data):
    """Their later steps have the same recipe and the same rows, and share a cache: each has a reference of its own."""
    (data / "half.py").write_text(HALF)
    kl = []
    for side in (0, 1):
        steps = {
            "half": {"do": "select", "data": "data", "subset": {"kind": "./half.py", "side": side}},
            "first": {"do": "train", "data": "half", "share": 0.5},
            "second": {"do": "train", "data": "data", "share": 0.5, "train": {"objective": "asft"}},
        }
        settings = recipe(data, "train.optimizer.lr=5e-3", steps=steps, budget={"epochs": 2})
        carry_out(Run(settings, data / f"{side}", cache=data / "shared"))
        lines = read_jsonl(data / f"{side}" / "metrics.jsonl")
        kl.append(next(line["kl"] for line in lines if line.get("step") == "second"))
    assert max(kl) < 1e-6
    assert not list((data / "shared" / "states").glob("*[!n]"))  # of models that one run has, nothing is kept


def test_an_objective_that_asks_the_reference_itself_is_answered_by_the_model(data, monkeypatch):
    (data / "mine.py").write_text(
        "from luthier import TokenObjective\n"
        "class Mine(TokenObjective):\n"
        "    READS = ('logits:initial',)\n"
        "    def terms(self, policy, batch, update):\n"
        "        policy.references['initial'].hidden(batch)\n"
        "        return super().terms(policy, batch, update)\n"
        "    def token_loss(self, view):\n"
        "        return -view.logprob\n"
    )
    seen = []
    monkeypatch.setattr("luthier.engine.hidden_cache.HiddenStateCache.compute", counted(HiddenStateCache.compute, seen))
    run_recipe(recipe(data, "train.objective=./mine.py", budget={"epochs": 1}), data / "run", [])
    assert not seen
