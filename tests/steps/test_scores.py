"""The score step: numbers against transformers' own forward, rewards, resume, choices by scores."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.errors import RecipeError, RunError
from luthier.models.loading.bundled import bundled_path
from luthier.recipe import load_recipe
from luthier.run_folder import read_json, read_jsonl
from luthier.steps import scores as scoring
from luthier.steps.run import run_recipe

WORDS = [f"{a}{b}{c}" for a in "ab" for b in "fg" for c in "kl"]
SUREST = """from typing import ClassVar
from luthier.select.records.base import Subset, by_record

class Surest(Subset):
    '''The likeliest answer of each record.'''
    READS: ClassVar = ("mean_logprob", "entropy")
    def choose(self, candidates, columns, seed):
        worth = [columns["mean_logprob"][one.row.id] - 0 * columns["entropy"][one.row.id] for one in candidates]
        return [max(places, key=lambda place: worth[place]) for places in by_record(candidates).values()]
"""
LENGTH = """from luthier.rewards.base import Reward

class Letters(Reward):
    '''The letters of an answer, and a half where it was cut off.'''
    def score(self, answer):
        return len(answer.text) + 0.5 * (answer.finish == "length")
"""


@pytest.fixture
def data(tmp_path):
    lines = [json.dumps({"prompt": f"reverse {word}", "completion": word[::-1]}) for word in WORDS]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "surest.py").write_text(SUREST)
    (tmp_path / "letters.py").write_text(LENGTH)
    return tmp_path


def run(folder, steps, name="run", **more):
    content = {
        "model": "nano",
        "data": {"train": "data.jsonl", "validation": None, "test": None},
        "train": {"tuner": {"kind": "lora", "r": 2}, "batch": {"records": 4}, "precision": "float32"},
        "budget": {"records": 8},
        "evaluate": {"metric": "exact", "perplexity": False},
        "generate": {"max_new_tokens": 3},
        "steps": steps,
    }
    return run_recipe(load_recipe({**content, **more}, base=folder), folder / name, [])


def scores(folder, step, name="run"):
    return read_jsonl(folder / name / "steps" / step / "scores.jsonl")


def test_scores_are_those_of_the_model_itself(data):
    steps = {"scores": {"do": "score", "entropy": True}, "learn": {"do": "train", "train": {"optimizer": {"lr": 0.01}}}}
    record = run(data, {**steps, "after": {"do": "score"}, "before": {"do": "score", "from": "base"}})
    model = AutoModelForCausalLM.from_pretrained(bundled_path("nano"), dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(bundled_path("nano"))
    found = scores(data, "scores")
    for word, line in zip(WORDS, found, strict=True):
        prompt = tokenizer(f"<|user|>reverse {word}<|end|><|assistant|>", add_special_tokens=False)["input_ids"]
        answer = tokenizer(f"{word[::-1]}<|end|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].double()
        log_p = logits.log_softmax(-1)
        total = log_p.gather(1, torch.tensor(answer)[:, None]).sum().item()
        assert line["sum_logprob"] == pytest.approx(total, rel=1e-4)
        assert (line["tokens"], line["source"], line["reward"]) == (len(answer), "data", 1.0)
        assert line["mean_logprob"] == pytest.approx(total / len(answer), rel=1e-4)
        assert line["entropy"] == pytest.approx(-(log_p.exp() * log_p).sum(-1).mean().item(), rel=1e-3)
    facts = record["steps"]["scores"]
    assert facts["mean_logprob"] == pytest.approx(sum(one["sum_logprob"] for one in found) / facts["tokens"])
    assert facts["answers"] == 8 and facts["looked_tokens"] > facts["tokens"] == sum(one["tokens"] for one in found)
    sums = [[one["sum_logprob"] for one in scores(data, step)] for step in ("scores", "before", "after")]
    assert sums[0] == sums[1] != sums[2] and "entropy" not in scores(data, "after")[0]


def test_rewards_are_kept_or_judged_again(data):
    steps = {"answers": {"do": "generate", "samples": 2, "generate": {"temperature": 1.0}}}
    steps |= {"kept": {"do": "score", "data": ["answers", "data"]}, "learn": {"do": "train"}}
    steps |= {"again": {"do": "score", "data": ["answers", "data"], "reward": "./letters.py"}}
    record = run(data, steps)
    answers = read_jsonl(data / "run" / "steps" / "answers" / "records.jsonl")
    kept, again = scores(data, "kept"), scores(data, "again")
    assert [one["row"] for one in kept] == [one["row"] for one in again]
    assert [one["reward"] for one in kept] == [*(one["reward"] for one in answers), *[1.0] * 8]
    end = AutoTokenizer.from_pretrained(bundled_path("nano")).eos_token_id
    expected = [len(one["answer"]) + 0.5 * (one["ids"][-1] != end) for one in answers]
    assert [one["reward"] for one in again] == [*expected, *[3.0] * 8] and {0.5} <= {one % 1 for one in expected}
    assert record["steps"]["again"]["reward"] == pytest.approx((sum(expected) + 24) / 24)


def test_a_choice_reads_what_a_score_step_left(data, monkeypatch):
    both = {"data": ["answers", "data"]}
    steps = {"answers": {"do": "generate", "samples": 3, "generate": {"temperature": 1.0}}}
    steps |= {
        "scores": {"do": "score", **both, "entropy": True},
        "kept": {"do": "select", **both, "subset": "./surest.py"},
    }
    steps |= {"learn": {"do": "train", "data": "kept"}}
    record = run(data, steps)
    best = {}
    for line in scores(data, "scores"):
        best.setdefault(line["record"], []).append((line["mean_logprob"], line["row"]))
    kept = read_json(data / "run" / "steps" / "kept" / "kept.json")["rows"]
    assert sorted(kept) == sorted(max(found, key=lambda one: one[0])[1] for found in best.values())

    monkeypatch.setattr(scoring, "score_candidates", None)  # scores are there: a run that goes on does not look again
    (data / "run" / "run.json").unlink()
    again = run(data, steps)
    assert again["steps"]["scores"] == record["steps"]["scores"] and again["steps"]["kept"] == record["steps"]["kept"]


@pytest.mark.parametrize(
    "before, said",
    [
        ({}, "chooses by `mean_logprob`, and no earlier `score` step"),
        ({"scores": {"do": "score"}}, "chooses by `entropy`, and no earlier `score` step"),
    ],
)
def test_a_choice_by_scores_needs_them(data, before, said):
    steps = {**before, "kept": {"do": "select", "subset": "./surest.py"}, "learn": {"do": "train", "data": "kept"}}
    with pytest.raises(RecipeError, match=said):
        run(data, steps)


def test_scores_of_other_answers_do_not_do(data):
    steps = {"scores": {"do": "score", "entropy": True}, "answers": {"do": "generate"}}
    steps |= {"kept": {"do": "select", "data": "answers", "subset": "./surest.py"}, "learn": {"do": "train"}}
    with pytest.raises(RunError, match="`mean_logprob`, which 8 of 8 answers lack"):
        run(data, steps)


def test_bad_answers_are_neither_asked_for_nor_chosen_by_a_training_that_left_them_out(data):
    rows = [{"prompt": f"reverse {word}", "completion": word[::-1], "label": word > WORDS[1]} for word in WORDS]
    (data / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    good = sum(row["label"] for row in rows)
    steps = {
        "answers": {"do": "generate", "samples": 2},
        "scores": {"do": "score", "data": ["answers", "data"]},
        "warm": {"do": "train", "probe": {"every": 1}},
        "kept": {"do": "select", "subset": {"kind": "s2l", "clusters": 1, "share": 1.0}},
        "learn": {"do": "train", "from": "base", "data": "kept"},
    }
    facts = run(data, steps)["steps"]
    assert 0 < good < len(rows)
    assert (facts["answers"]["answers"], facts["answers"]["without_reference"]) == (2 * good, len(rows) - good)
    assert facts["scores"]["answers"] == 2 * good + len(rows)
    assert (facts["kept"]["candidates"], facts["kept"]["untrained"]) == (good, len(rows) - good)


def test_plain_text_is_scored_without_a_judge(data):
    (data / "text.jsonl").write_text("".join(json.dumps({"text": f"copy: {word}"}) + "\n" for word in WORDS))
    source = {"train": "text.jsonl", "validation": None, "test": None}
    run(data, {"scores": {"do": "score"}, "learn": {"do": "train"}}, data=source, evaluate={"perplexity": True})
    found = scores(data, "scores")
    assert {one["reward"] for one in found} == {None} and all(one["sum_logprob"] < 0 for one in found)
    assert math.isnan(scoring.scored_columns(found)["reward"][found[0]["row"]])
