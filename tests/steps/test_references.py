"""References of the model as training found it: read before training, or asked while it goes on."""

import pytest
import torch
from safetensors.torch import load_file

from luthier.engine.states import States
from luthier.errors import RecipeError
from luthier.records import read_jsonl
from luthier.steps import run_recipe
from runs import recipe, run_recipe_until_killed, with_words


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
    assert len(list((data / "run" / "shared" / "scores").iterdir())) == 1


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
    monkeypatch.setattr("luthier.engine.states.States.compute", counted(States.compute, seen))
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
        (file,) = (data / name / "shared" / "states").iterdir()
        if name == "lost":
            file.unlink()
        run_recipe(settings, data / name, [])
        found = load_file(data / name / "model" / "adapter_model.safetensors")
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
