"""Pipelines on nano: branches, self-made answers, loops, rollouts; each resumed in the middle bit for bit."""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from luthier.engine.trainer import Trainer
from luthier.errors import RecipeError, RunError
from luthier.models.loading.bundled import bundled_path
from luthier.recipe import load_recipe
from luthier.run_folder import read_json, read_jsonl
from luthier.steps.run import run_recipe
from luthier.steps.verbs import select

NEVER = """from luthier.rewards.base import Reward

class {name}(Reward):
    '''Gives {value} to every answer.'''
    def score(self, answer):
        return {value}
"""


@pytest.fixture
def data(tmp_path):
    words = [f"{a}{b}{c}" for a in "abc" for b in "fg" for c in "kl"]
    lines = [json.dumps({"prompt": f"reverse {word}", "completion": word[::-1]}) for word in words]
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "never.py").write_text(NEVER.format(name="Never", value=0.0))
    (tmp_path / "always.py").write_text(NEVER.format(name="Always", value=1.0))
    return tmp_path


def recipe(folder, *overrides, methods=(), **more):
    content = {
        "model": "nano",
        "data": {"train": "data.jsonl", "validation": None, "test": None},
        "train": {"tuner": {"kind": "lora", "r": 2}, "batch": {"records": 4}, "save": {"every": 1}},
        "budget": {"records": 16},
        "evaluate": {"metric": "exact", "perplexity": False},
        "generate": {"max_new_tokens": 6},
    }
    return load_recipe({**content, **more}, methods=methods, overrides=list(overrides), base=folder)


def weights(folder):
    return load_file(next((folder / "model").glob("*.safetensors")))


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_branch_from_the_base_does_not_see_what_was_trained_before(data):
    steps = {"warm": {"do": "train"}, "polish": {"do": "train", "from": "base"}}
    record = run_recipe(recipe(data, steps=steps), data / "branch", [])
    run_recipe(recipe(data, budget={"records": 8}), data / "alone", [])
    assert same(data / "branch", data / "alone")
    assert list(record["steps"]) == ["warm", "polish"]
    assert (record["train"]["updates"], record["train"]["records"]) == (4, 16)
    assert [line["step"] for line in read_jsonl(data / "branch" / "metrics.jsonl")] == ["warm"] * 2 + ["polish"] * 2
    assert not list((data / "branch").glob("**/checkpoints"))


def test_a_second_training_goes_on_from_the_first_and_leaves_a_whole_model(data):
    steps = {"warm": {"do": "train"}, "polish": {"do": "train"}}
    model = {"path": "nano", "dtype": "float32"}  # merged into bfloat16, two updates of an adapter would be lost
    run_recipe(recipe(data, steps=steps, model=model), data / "two", [])
    assert (data / "two" / "model" / "config.json").is_file()
    assert not (data / "two" / "model" / "adapter_config.json").exists()
    lines = read_jsonl(data / "two" / "metrics.jsonl")
    assert lines[2]["loss"] < lines[0]["loss"]  # the same records in the same order, learned once already


def test_s3ft_without_a_right_answer_is_sft_on_gold(data):
    run_recipe(recipe(data), data / "sft", [])
    record = run_recipe(recipe(data, methods=["s3ft"], reward=["./never.py"]), data / "s3ft", [])
    assert record["steps"]["chosen"]["sources"] == {"data": 12}
    assert record["steps"]["answers"]["answers"] == record["steps"]["rewrites"]["answers"] == 12
    assert same(data / "sft", data / "s3ft")


def test_s3ft_where_every_answer_is_right_never_uses_gold(data):
    record = run_recipe(recipe(data, methods=["s3ft"], reward=["./always.py"]), data / "run", [])
    assert record["steps"]["chosen"]["sources"] == {"answers": 12}
    assert record["steps"]["rewrites"]["answers"] == 0
    line = read_jsonl(data / "run" / "steps" / "answers" / "records.jsonl")[0]
    assert line["prompt_tokens"] < len(line["ids"]) and line["source"] == "answers" and line["reward"] == 1.0


def test_a_selection_that_keeps_nothing_is_said(data):
    with pytest.raises(RunError, match="nothing to train on"):
        run_recipe(recipe(data, methods=["fare"], reward=["./never.py"]), data / "run", [])


def test_a_carried_loop_is_one_training_over_its_rounds(data):
    settings = recipe(data, methods=["fare"], reward=["./always.py"])
    record = run_recipe(settings, data / "run", [])
    lines = read_jsonl(data / "run" / "metrics.jsonl")
    rates = [line["learning_rate"] for line in lines]
    assert [line["step"] for line in lines] == ["rounds/round-1/train"] * 2 + ["rounds/round-2/train"] * 2
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.2 * rates[0]
    asked = [
        {
            line["record"]
            for line in read_jsonl(data / "run" / "steps" / "rounds" / f"round-{n}" / "answers" / "records.jsonl")
        }
        for n in (1, 2)
    ]
    assert not asked[0] & asked[1] and len(asked[0] | asked[1]) == 12
    assert record["steps"]["rounds/round-1/kept"]["kept"] == 6


def stopped_at(monkeypatch, settings, folder, number):
    """Run, asked to stop during the update of that number (over all steps)."""
    one, calls = Trainer._one_update, iter(range(1, 1000))

    def asked(self):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGINT)
        return one(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_one_update", asked)
        assert run_recipe(settings, folder, [])["status"] == "stopped"


RL = {
    "train": {
        "objective": "grpo",
        "tuner": {"kind": "lora", "r": 2},
        "optimizer": {"lr": 1e-3},
        "batch": {"records": 2},
        "save": {"every": 1},
    },
    "rl": {"strategy": {"group": 4}, "updates": 2, "generate": {"max_new_tokens": 6}},
    "budget": {"updates": 5},
}


@pytest.mark.parametrize(
    "name, more, number, counted",
    [
        ("pipeline", {"steps": {"warm": {"do": "train"}, "polish": {"do": "train"}}}, 5, ()),
        (
            "s2l",
            {"methods": ["s2l"]},
            3,
            ("looked_tokens",),
        ),  # in the last training: what the probe saw is in the proxy's checkpoint
        ("loop", {"methods": ["fare"], "reward": ["./always.py"]}, 4, ("generated_tokens",)),
        ("rl", RL, 2, ("generated_tokens",)),  # in the middle of a stored rollout
    ],
)
def test_stopped_in_the_middle_and_resumed_gives_the_same_bits(data, monkeypatch, name, more, number, counted):
    whole = run_recipe(recipe(data, **more), data / "whole", [])
    stopped_at(monkeypatch, recipe(data, **more), data / "broken", number)
    again = run_recipe(recipe(data, **more), data / "broken", [])
    assert (whole["status"], again["status"]) == ("done", "done")
    assert same(data / "whole", data / "broken")
    for spent in ("looked_tokens", "generated_tokens"):
        assert whole["train"][spent] == again["train"][spent] and (whole["train"][spent] > 0) == (spent in counted)
    losses = [[line["loss"] for line in read_jsonl(data / n / "metrics.jsonl")] for n in ("whole", "broken")]
    assert losses[0] == losses[1]


def test_a_rollout_reports_rewards_and_counts_updates_without_a_signal(data):
    record = run_recipe(recipe(data, **{**RL, "reward": ["./always.py"]}), data / "run", [])
    lines = read_jsonl(data / "run" / "metrics.jsonl")
    assert [line["skipped"] for line in lines] == [1.0] * 5 and record["train"]["skipped_updates"] == 5
    sampled = sum(2 * 4 * line["length"] for line in lines)
    assert record["train"]["generated_tokens"] == pytest.approx(sampled) and record["train"]["tokens"] == 0
    assert all(line["reward"] == 1.0 and line["reward/always"] == 1.0 and line["length"] > 0 for line in lines)
    assert read_json(data / "run" / "run.json")["train"]["records"] == 10


def test_a_rollout_without_a_signal_is_trained_on_where_the_loss_has_a_gradient_all_the_same(data):
    """An entropy bonus moves the answers of groups that are all alike, and so does a divergence."""
    bonus = ["grpo", {"objective": "entropy", "coefficient": 0.01}]
    for name, objective in (("bonus", bonus), ("pull", {"kind": "grpo", "kl_coefficient": 0.1})):
        more = {**RL, "train": {**RL["train"], "objective": objective}, "budget": {"updates": 1}}
        record = run_recipe(recipe(data, **more, reward=["./always.py"]), data / name, [])
        assert record["train"]["skipped_updates"] == 0 and record["train"]["tokens"] > 0


def test_grape_where_nothing_is_right_but_gold_is_sft(data):
    run_recipe(recipe(data), data / "sft", [])
    record = run_recipe(recipe(data, methods=["grape"], reward=["./never.py"]), data / "grape", [])
    assert record["steps"]["right"]["sources"] == record["steps"]["chosen"]["sources"] == {"data": 12}
    assert same(data / "sft", data / "grape")


def test_grape_takes_the_likeliest_right_answer_of_each_prompt(data):
    record = run_recipe(recipe(data, methods=["grape"], reward=["./always.py"]), data / "run", [])
    assert record["steps"]["right"]["kept"] == 5 * 12 and record["steps"]["chosen"]["kept"] == 12
    steps, train = record["steps"], record["train"]
    assert train["generated_tokens"] == steps["answers"]["generated_tokens"] > 0
    assert train["looked_tokens"] == steps["chosen"]["looked_tokens"] > 0 and train["looked_rows"] == 5 * 12
    assert record["steps"]["chosen"]["sources"].get("answers", 0) > 6  # what a model writes is what it finds likely


def test_a_selection_scores_under_the_model_that_it_names(data, monkeypatch):
    found, score = [], select.scoring.score

    def recorded(*given):
        found.append(score(*given)["logprobs"])
        return {"logprobs": found[-1]}

    monkeypatch.setattr(select.scoring, "score", recorded)
    chosen = {"do": "select", "data": "data", "subset": "grape"}
    steps = {"first": chosen, "warm": {"do": "train", "train": {"optimizer": {"lr": 1e-2}}}}
    steps |= {"untuned": {**chosen, "from": "base"}, "tuned": chosen, "end": {"do": "train"}}
    run_recipe(recipe(data, steps=steps), data / "run", [])
    first, untuned, tuned = ([values.tolist() for values in column.values()] for column in found)
    assert first == untuned != tuned


def test_s2l_trains_on_its_choice_from_the_base(data):
    record = run_recipe(recipe(data, methods=["s2l"]), data / "run", [])
    assert record["steps"]["chosen"]["sources"] == {"data": 6}
    assert [record["steps"][name]["updates"] for name in ("proxy", "train")] == [1, 3]
    assert record["steps"]["proxy"]["looked_rows"] == 2 * 12  # before the only update, and after it


def test_a_smaller_model_can_be_the_proxy_and_leaves_the_recipes_model_alone(data):
    small = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(bundled_path("nano"), num_hidden_layers=1))
    small.save_pretrained(data / "small")
    AutoTokenizer.from_pretrained(bundled_path("nano")).save_pretrained(data / "small")
    proxy = {"do": "train", "model": "./small", "share": 0.5, "probe": {"every": 1}}
    record = run_recipe(recipe(data, steps={"proxy": proxy, "train": {"do": "train"}}), data / "run", [])
    alone = run_recipe(recipe(data, budget={"records": 8}), data / "alone", [])
    assert same(data / "run", data / "alone")
    assert record["train"]["weights_id"] == alone["train"]["weights_id"] != record["steps"]["proxy"]["weights_id"]
    assert record["steps"]["proxy"]["looked_rows"] == 3 * 12


def test_a_choice_by_losses_needs_a_probe(data):
    steps = {"warm": {"do": "train"}, "chosen": {"do": "select", "subset": "s2l"}, "train": {"data": "chosen"}}
    with pytest.raises(RecipeError, match=r"`chosen` chooses by `trajectory`.* no earlier step has"):
        run_recipe(recipe(data, steps=steps), data / "run", [])
