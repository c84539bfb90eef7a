"""The check step: what it prints, and what makes it fail."""

import io
import json
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from luthier.data.report import DataReport
from luthier.errors import DataError, RecipeError
from luthier.evals.worked import ExplainedMetric
from luthier.modalities.open import open_workspace
from luthier.recipe import load_recipe
from luthier.steps.check import Methods, examine_recipe
from luthier.steps.check_model import ModelTrial
from luthier.steps.check_page import check_recipe
from luthier.steps.trial import TriedUpdate


@pytest.fixture
def recipe(tmp_path):
    lines = [{"prompt": f"reverse {i:04}", "completion": f"{i:04}"[::-1]} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")

    def make(*overrides, **more):
        content = {"model": "nano", "data": {"train": "data.jsonl", "validation": 4, "test": 6}}
        return load_recipe({**content, **more}, overrides=list(overrides), base=tmp_path)

    return make


def shown(recipe, probe=False):
    screen = io.StringIO()
    check_recipe(recipe, probe, Console(file=screen, width=150))
    return screen.getvalue()


def test_shows_data_mask_methods_and_memory(recipe):
    text = shown(recipe())
    assert re.search(r"records +train 30, validation 4, test 6", text)
    assert re.search(r"reverse \d{4}.*⟦\d{4}", text)
    assert all(re.search(rf"\b{name}\s\d\.\d\sGB", text) for name in ("asft", "dft", "sft"))
    assert "--probe" in text


def test_pairs_show_both_answers_and_who_learns_from_them(recipe, tmp_path):
    lines = [{"prompt": f"copy {i:03}", "chosen": f"{i:03}", "rejected": f"{i:03}"[::-1] + "x"} for i in range(40)]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    text = shown(recipe())
    assert re.search(r"read +40 records \(40 preference\)", text) and re.search(r"records +train 30", text)
    assert re.search(r"chosen:\s+.*copy \d{3}.*⟦\d{3}", text)
    assert re.search(r"rejected:\s+.*copy \d{3}.*⟦\d{3}x", text)
    assert re.search(r"dpo \d\.\d GB .*sft \d\.\d GB", text, re.S)


def test_several_columns_are_joined_and_what_nothing_reads_is_named(recipe, tmp_path):
    lines = []
    for i in range(40):
        more = {"checks": "assert one or two or three", "story": f"This is the story of number {i}", "level": 3}
        lines.append({"do": "reverse", "what": f"{i:04}", "completion": f"{i:04}"[::-1], **more})
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    source = {"path": "data.jsonl", "columns": {"prompt": ["do", "what"]}}
    data = {"train": source, "validation": 4, "test": 6}
    text = shown(recipe(data=data, reward={"kind": "code", "column": "checks"}))
    assert re.search(r"reverse⏎\s*⏎\s*\d{4}", text)
    assert re.search(r"not read +story \(40\), level \(40\)", text)
    assert re.search(r"warning `story` \(40 records\): text that nothing in the recipe reads", text)
    for names in ([], 3, ["do", 3]):
        with pytest.raises(RecipeError, match=r"columns\.prompt: expected the name of a column, or a list of names"):
            recipe(data={**data, "train": {**source, "columns": {"prompt": names}}})


def test_one_answer_per_record_is_not_for_objectives_of_pairs(recipe):
    text = " ".join(shown(recipe()).split())
    assert re.search(r"not [^:]*\bdpo\b[^:]*: learns from pairs of a chosen and a rejected answer; record", text)


def test_full_fine_tuning_by_asft_keeps_a_head_or_where_the_reference_is_asked_again_and_again_a_copy(recipe):
    from luthier.steps.check import _memory

    def estimate(objective, tuner, *more):
        made = recipe(f"train.objective={objective}", f"train.tuner={tuner}", "model.dtype=float32", *more)
        from luthier.conformance.tiny import tiny_rows

        return _memory(made, SimpleNamespace(train=tiny_rows(), records={}))

    sft, asft = estimate("sft", "full"), estimate("asft", "full")
    head = asft.weights - sft.weights
    assert 0 < head < sft.weights / 10 and head == estimate("asft", "full", "budget={epochs: 1}").weights - sft.weights
    assert estimate("asft", "full", "budget={seconds: 9}").weights == 2 * sft.weights
    assert estimate("asft", "lora").weights < 1.2 * sft.weights


def test_the_probe_measures_time_and_memory(recipe):
    text = shown(recipe("train.batch.records=8"), probe=True)
    measured, estimated = (float(x) for x in re.findall(r"(\d+\.\d+) GB (?:measured|estimated)", text))
    assert 0.75 < estimated / measured < 1.25
    assert re.search(r"about \d+\.\d min of training at [\d,]+ tokens/s", text)


def test_records_that_cannot_be_used_are_all_listed(recipe, tmp_path):
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write('{"prompt": "x", "completion": ""}\nnot json\n')
    screen = io.StringIO()
    with pytest.raises(DataError, match=r"^2 of 42 records cannot be used"):
        check_recipe(recipe(), False, Console(file=screen, width=150))
    assert "data.jsonl:41" in screen.getvalue() and "data.jsonl:42" in screen.getvalue()


def test_a_record_longer_than_the_context_is_found_before_training(recipe, tmp_path):
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "x", "completion": "abc " * 300}) + "\n")
    with pytest.raises(DataError, match=r"reads at most 512"):
        shown(recipe("data.max_tokens=100000", "data.test=null", "data.validation=null"))


PIPELINE = {
    "warm": {"do": "train", "share": 0.5},
    "rounds": {
        "do": "loop",
        "rounds": 2,
        "steps": {
            "answers": {"do": "generate"},
            "kept": {"do": "select", "data": ["answers", "data"], "subset": "first_right"},
            "polish": {"do": "train", "from": "base", "data": "kept", "train": {"tuner": "full"}},
        },
    },
}


def test_steps_are_shown_as_a_table_with_the_memory_of_the_largest_training(recipe):
    text = shown(recipe("compare.methods=[sft]", steps=PIPELINE))
    assert re.search(r"step +do +from +data +share", text)
    assert re.search(r"warm +train +newest +data +50%", text)
    assert re.search(r"rounds +loop +data +50%", text)
    assert re.search(r"  kept +select .*answers, data", text) and re.search(r"  polish +train +base +kept +25%", text)
    assert re.search(r"memory +\d\.\d GB at the peak of `polish`", text)
    with pytest.raises(RecipeError, match="--probe"):
        shown(recipe(steps=PIPELINE), probe=True)


def test_rollouts_are_a_step_and_other_kinds_of_models_do_not_apply(recipe):
    text = shown(recipe(train={"objective": "grpo"}, rl={}))
    assert re.search(r"rl +rl +base +data +100%", text) and re.search(r"\bgrpo \d\.\d GB", text)
    assert "siglip: trains image and text encoders" in re.sub(r"\s+", " ", text)


def test_an_objective_of_sampled_answers_needs_rollouts(recipe):
    with pytest.raises(RecipeError, match=r"(?s)`grpo` learns from `advantages` .*Add `rl: \{\}`"):
        shown(recipe("train.objective=grpo"))


def test_a_csv_of_other_columns_is_one_complaint_with_the_hint_that_run_gives(tmp_path):
    lines = ["question,answer", *(f"what is {number} + 1,{number + 1}" for number in range(300))]
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    wrong = load_recipe({"model": "nano", "data": {"train": "data.csv"}}, base=tmp_path)
    screen = io.StringIO()
    with pytest.raises(DataError, match=r"^300 of 300 records cannot be used"):
        check_recipe(wrong, False, Console(file=screen, width=300))
    assert screen.getvalue().count("300 × data.csv:2, data.csv:3 and 298 more: no known shape") == 1
    with pytest.raises(DataError) as run:
        open_workspace(wrong, None)
    mapping = "columns: {prompt: question, completion: answer}"
    assert mapping in run.value.hint and mapping in screen.getvalue()


def test_findings_are_told_one_by_one_and_are_there_for_programs_too(recipe):
    told = []
    findings = examine_recipe(recipe(), False, told.append)
    kinds = [DataReport, ExplainedMetric, Methods, ModelTrial, TriedUpdate]
    assert told == findings and [type(finding) for finding in findings] == kinds
    data, _, methods, model, trial = findings
    assert model.lines == ("LlamaForCausalLM sees no later token; rows are laid out as `shared`",)
    assert trial.records == 4 and trial.loss > 0 and trial.parts == "sft with lora"
    assert data.counts == {"train": 30, "validation": 4, "test": 6}
    families = {family: [fit.name for fit in fits] for family, fits in methods.by_family().items()}
    assert {"sft", "dft"} <= {*families["supervised"]} and {"uds", "max_loss"} <= {*families["selectors"]}
    assert {"spiel", "s2ft"} <= {*families["tuners"]} and "s2l" in families["pipelines"]
    assert [*families][-1] == "pipelines" and families["supervised"] == sorted(families["supervised"])
    assert all(fit.peak_bytes > 10**6 for fit in methods.fits)
    (trains,) = methods.trains
    assert trains.tuner == "lora" and trains.kinds[0].kind == "dense layers" and trains.kinds[0].reached == 1
    assert {name for names in methods.refused.values() for name in names}.isdisjoint(fit.name for fit in methods.fits)


def test_methods_are_printed_by_family(recipe):
    lines = shown(recipe()).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("methods that fit"))
    families = [line.split()[0] for line in lines[start + 1 :] if re.match(r"  \w", line)]
    assert families == ["policy", "supervised", "selectors", "tuners", "pipelines"]
