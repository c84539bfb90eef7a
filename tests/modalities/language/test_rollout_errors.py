"""Rollouts that cannot work are refused in words before anything is sampled; failures on the way are logged."""

import json
from dataclasses import replace

import numpy
import pytest
import torch

from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.engine.assemble import Parts, frozen_bytes, tuned_policy
from luthier.engine.score import score
from luthier.errors import DataError, RecipeError, RunError
from luthier.modalities.language import rollout
from luthier.objectives.sum import build_objective
from luthier.parts import build
from luthier.recipe import load_recipe, stages_of
from luthier.run_folder import read_json, read_jsonl
from luthier.sampling.native import NativeSampler
from luthier.steps.run import run_recipe
from luthier.steps.verify import verify
from luthier.tuners.base import TunerInputs

MOODY = """from luthier.rewards.base import Reward

class Moody(Reward):
    '''Raises for one record, never ends for another, and judges the others by their letters.'''
    def score(self, answer):
        if 'afk' in answer.prompt:
            raise ValueError('moody')
        while 'bfk' in answer.prompt:
            pass
        return float(sum(map(ord, answer.text)) % 7)
"""
WRONG = """from luthier.rewards.base import Reward

class Wrong(Reward):
    def score(self, answer):
        return float(answr.text == answer.gold)
"""
FAULTY = """from luthier.objectives.base import TokenObjective

class Faulty(TokenObjective):
    '''Asks for what there is not.'''
    def token_loss(self, view):
        return -view.logprobs
"""
FEW = {"validation": None, "test": None}


def recipe(folder, *overrides, lines=None, write=None, **more):
    words = [f"{a}{b}{c}" for a in "ab" for b in "fg" for c in "kl"]
    lines = lines or [{"prompt": f"reverse {word}", "completion": word[::-1]} for word in words]
    (folder / "data.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    for name, text in {"moody.py": MOODY, **(write or {})}.items():
        (folder / name).write_text(text)
    content = {
        "model": "nano",
        "data": {"train": "data.jsonl", **FEW},
        "train": {"objective": "grpo", "tuner": {"kind": "lora", "r": 2}, "batch": {"records": 8}},
        "rl": {"strategy": {"group": 2}, "generate": {"max_new_tokens": 6}},
        "budget": {"updates": 1},
        "evaluate": {"metric": "exact", "perplexity": False, "limit": 1},
    }
    return load_recipe({**content, **more}, overrides=list(overrides), base=folder)


@pytest.fixture
def unsampled(monkeypatch):
    """Any generation is a failure."""

    def sampled(self, *_, **__):
        raise AssertionError("sampled")

    monkeypatch.setattr(NativeSampler, "__call__", sampled)


def test_text_without_a_prompt_has_neither_questions_nor_demonstrations(tmp_path, unsampled):
    settings = recipe(tmp_path, "rl.strategy=prefix", lines=[{"text": f"word {i}"} for i in range(4)])
    with pytest.raises(DataError, match=r"data\.jsonl:1.* is plain text without a prompt to answer"):
        run_recipe(settings, tmp_path / "run", [])


def test_a_strategy_whose_prompts_have_no_demonstration(tmp_path, unsampled, monkeypatch):
    made = rollout.prompt_of_rollout
    monkeypatch.setattr(rollout, "prompt_of_rollout", lambda *given: replace(made(*given), demonstration=None))
    with pytest.raises(DataError, match="`prefix` shows parts of gold answers, and no record has one"):
        run_recipe(recipe(tmp_path, "rl.strategy=prefix"), tmp_path / "run", [])


def test_a_reward_that_raises_and_one_that_hangs_are_logged_and_the_run_goes_on(tmp_path):
    settings = recipe(tmp_path, reward=[{"kind": "./moody.py", "seconds": 0.2}])
    record = run_recipe(settings, tmp_path / "run", [])
    assert record["status"] == "done"
    assert "The reward `moody` failed 4 times" in record["warnings"][0] and "metrics.jsonl" in record["warnings"][0]
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    failed = [line for line in lines if line.get("event") == "reward_failed"]
    assert {line["reward"] for line in failed} == {"moody"} and len(failed) == 4
    assert {line["error"].split(":")[0] for line in failed} == {"ValueError", "TooSlow"}
    assert {line["error"] for line in failed if line["error"].startswith("V")} == {"ValueError: moody (moody.py:7)"}
    assert len({line["record"] for line in failed}) == 2
    assert [line["skipped"] for line in lines if "loss" in line] == [0.0]


def test_a_reward_that_always_raises_ends_the_run_with_what_it_raised(tmp_path):
    settings = recipe(tmp_path, reward=[{"kind": "./wrong.py"}], write={"wrong.py": WRONG})
    with pytest.raises(
        RunError, match=r"first failure: `wrong` on record \w+: NameError: name 'answr' .*\(wrong\.py:5\)"
    ):
        run_recipe(settings, tmp_path / "run", [])


def test_a_part_of_ones_own_that_raises_is_told_with_its_line(tmp_path):
    settings = recipe(tmp_path, "train.objective=./faulty.py", rl=None, write={"faulty.py": FAULTY})
    with pytest.raises(RunError, match=r"raised AttributeError: .*logprobs.* \(faulty\.py:6\)"):
        run_recipe(settings, tmp_path / "run", [])
    assert "faulty.py:6" in read_json(tmp_path / "run" / "run.json")["error"]


def test_a_group_of_one_has_nothing_to_compare(tmp_path, unsampled):
    with pytest.raises(RecipeError, match="`group_norm` compares the answers of a group, and `plain` samples one"):
        run_recipe(recipe(tmp_path, "rl.strategy.group=1"), tmp_path / "run", [])
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"
    verify(stages_of(recipe(tmp_path, "rl.strategy.group=1", "rl.advantages=returns")))


def test_an_objective_of_another_kind_of_model(tmp_path):
    for name, kind in (("siglip", "image and text encoders"), ("flow", "denoisers")):
        settings = recipe(tmp_path, f"train.objective={name}", rl=None)
        with pytest.raises(RecipeError, match=f"`{name}` trains {kind}; nano is one of the language models"):
            verify(stages_of(settings))


@pytest.mark.parametrize("name, copies", [("lora", 0), ("full", 1)])
def test_a_tuner_that_edits_the_base_is_measured_against_a_frozen_copy(name, copies):
    """The reference stays where training began, whether it is the base without an adapter or a copy of it."""
    module, rows = tiny_model(torch.float32), tiny_rows()
    objective = build_objective({"kind": "grpo", "kl_coefficient": 0.1})
    chosen = Parts(objective, (build("tuner", name),), None, None)
    policy = tuned_policy(module, chosen, TunerInputs(0, rows), online={"initial"})
    assert frozen_bytes(policy) == copies * sum(
        p.numel() * p.element_size() for p in tiny_model(torch.float32).parameters()
    )

    def logprobs(who):
        return numpy.concatenate(list(score(who, rows, ["logprobs"], 4096)["logprobs"].values()))

    before = logprobs(policy.references["initial"])
    assert numpy.array_equal(before, logprobs(policy))
    with torch.no_grad():
        for parameter in policy.module.parameters():
            if parameter.requires_grad:
                parameter += 0.05
    assert numpy.array_equal(before, logprobs(policy.references["initial"]))
    assert not numpy.allclose(before, logprobs(policy), atol=1e-3)


def test_an_objective_that_does_not_look_at_rewards_is_refused(tmp_path, unsampled):
    with pytest.raises(RecipeError, match="`sft` does not read rewards") as error:
        run_recipe(recipe(tmp_path, "train.objective=sft"), tmp_path / "run", [])
    assert "s3ft" in error.value.hint
    verify(stages_of(recipe(tmp_path, train={"objective": ["grpo", {"objective": "sft", "coefficient": 0.1}]})))
