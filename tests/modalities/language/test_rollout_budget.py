"""Several updates per rollout under every unit of a budget, and rollouts that teach nothing."""

import json

import pytest

from luthier.recipe import load_recipe
from luthier.steps.run import run_recipe

VARIED = """
import hashlib
from luthier.rewards.base import Reward


class Mine(Reward):
    def score(self, answer):
        return int(hashlib.md5(answer.text.encode()).hexdigest(), 16) % 1000 / 1000
"""
CONSTANT = VARIED.replace("int(hashlib.md5(answer.text.encode()).hexdigest(), 16) % 1000 / 1000", "0.5")


def metrics(folder, budget, reward=VARIED, schedule="cosine", **rl):
    """The metrics of a run on eight prompts, four per rollout, and its record."""
    lines = [json.dumps({"prompt": f"reverse {word}", "completion": word[::-1]}) for word in "abcdefghijkl"]
    (folder / "data.jsonl").write_text("\n".join(lines[:8]) + "\n")
    (folder / "test.jsonl").write_text("\n".join(lines[8:]) + "\n")
    (folder / "mine.py").write_text(reward)
    recipe = load_recipe(
        {
            "model": "nano",
            "data": {"train": "data.jsonl", "validation": None, "test": "test.jsonl"},
            "train": {
                "objective": "grpo",
                "batch": {"records": 4},
                "precision": "float32",
                "schedule": {"kind": schedule, "warmup": 0.25},
            },
            "rl": {"strategy": {"group": 4}, "generate": {"max_new_tokens": 4, "temperature": 1.5}, **rl},
            "reward": "./mine.py",
            "budget": budget,
            "evaluate": {"perplexity": False},
            "generate": {"max_new_tokens": 2},
        },
        base=folder,
    )
    record = run_recipe(recipe, folder / "run", [])
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "learning_rate" in line], record


@pytest.mark.parametrize("shape", [{"passes": 4}, {"updates": 2, "passes": 2}, {"updates": 4}])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_rates_are_those_of_the_same_number_of_updates(tmp_path, shape, schedule):
    rates = {}
    for name, budget in {"updates": {"updates": 8}, "epochs": {"epochs": 1}, "records": {"records": 8}}.items():
        (tmp_path / name).mkdir()
        lines, _ = metrics(tmp_path / name, budget, schedule=schedule, **shape)
        rates[name] = [line["learning_rate"] for line in lines]
        assert lines[-1]["progress"] == 1.0
    assert len(rates["updates"]) == 8 and min(rates["updates"]) > 0
    assert rates["epochs"] == pytest.approx(rates["updates"]) == rates["records"]


def test_a_budget_of_tokens_ends_where_no_answer_teaches_anything(tmp_path):
    lines, record = metrics(tmp_path, {"tokens": 400}, reward=CONSTANT)
    assert record["status"] == "done" and all(line["skipped"] for line in lines)
    assert lines[-1]["progress"] == 1.0 and lines[-1]["tokens"] == 0 and 1 < len(lines) < 40
    assert any("got the same reward" in warning for warning in record["warnings"])


def test_the_warning_of_answers_that_were_cut_off_names_the_limit(tmp_path):
    _, record = metrics(
        tmp_path, {"updates": 2}, train_cut_off=False, generate={"max_new_tokens": 1, "temperature": 2.0}
    )
    assert any("generate.max_new_tokens" in warning for warning in record["warnings"])
