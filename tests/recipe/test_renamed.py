"""Recipes and locks with the keys of older versions: `rollout:` and `sample:` at the top."""

import copy
from pathlib import Path

import pytest

from luthier.errors import RecipeError
from luthier.recipe import load_recipe, yaml
from luthier.recipe.settings import Denoise, Sample

ROOT = Path(__file__).parents[2]
DENOISER = yaml.parse((ROOT / "examples" / "denoiser.yaml").read_text(encoding="utf-8"), "denoiser.yaml").data
ROLLOUT = {"groups": 10, "size": 16, "steps": 8, "updates": 4}
OLD = {key: value for key, value in DENOISER.items() if key != "rl"} | {"rollout": ROLLOUT, "sample": {"steps": 3}}
NEW = {**DENOISER, "evaluate": {"sample": {"steps": 3}}}


def test_an_old_recipe_is_the_new_one():
    old, new = load_recipe(OLD), load_recipe(NEW)
    assert old.data == new.data and "rollout" not in old.data and "sample" not in old.data
    assert old.settings.rl == Denoise(**ROLLOUT) and old.settings.evaluate.sample == Sample(steps=3)
    assert old.origins["rl.groups"] == "recipe (as `rollout`)" and new.origins["rl.groups"] == "recipe"
    assert old.origins["evaluate.sample.steps"] == "recipe (as `sample`)" and old.origins["rl.decay"] == "default"


def test_old_and_new_keys_meet_over_layers(tmp_path):
    (tmp_path / "base.yaml").write_text("rollout:\n  size: 3\n  steps: 5\n")
    made = load_recipe({**NEW, "extends": "base.yaml"}, overrides=["rollout.steps=6", "sample.shift=2"], base=tmp_path)
    rl, sample = made.settings.rl, made.settings.evaluate.sample
    assert (rl.size, rl.steps, rl.groups) == (16, 6, 10) and (sample.steps, sample.shift) == (3, 2.0)
    made = load_recipe({**DENOISER, "extends": "base.yaml", "rl": {"groups": 2}}, base=tmp_path)
    assert (made.settings.rl.size, made.origins["rl.size"]) == (3, "recipe base.yaml:2 (as `rollout`)")


def test_both_names_in_one_recipe_are_refused():
    with pytest.raises(RecipeError, match=r"`rollout` is called `rl` now, and both are written"):
        load_recipe({**NEW, "rollout": ROLLOUT})
    with pytest.raises(RecipeError, match=r"`sample` is called `evaluate.sample` now, and both are written"):
        load_recipe({**NEW, "sample": {"steps": 3}})


def test_a_wrong_value_under_an_old_name_is_told_with_both():
    with pytest.raises(RecipeError, match=r"recipe \(as `rollout`\): rl.size: must be greater than 0"):
        load_recipe({**OLD, "rollout": {"size": 0}})
    with pytest.raises(RecipeError, match=r"\(as `rollout`\): there is no key `rl.sise`"):
        load_recipe({**OLD, "rollout": {"sise": 1}})
    with pytest.raises(RecipeError, match=r"\(as `sample`\): evaluate.sample"):
        load_recipe({**OLD, "sample": 3})


def lock_of_before(recipe):
    """A lock as the version before wrote it: both blocks at the top, with every default."""
    lock = copy.deepcopy(recipe.to_lock())
    data, origins = lock["recipe"], lock["origins"]
    rl = data["rl"] if (data["rl"] or {}).get("kind") == "denoise" else None
    data["rollout"] = {
        key: value for key, value in (rl or Denoise().model_dump()).items() if key not in ("kind", "shift")
    }
    data["sample"] = data["evaluate"].pop("sample", Sample().model_dump())
    if data["rl"] is not None:
        data["rl"].pop("kind")
        data["rl"] = None if rl else data["rl"]
    for key in [key for key in origins if key.startswith(("rl.", "evaluate.sample."))]:
        if rl or key.startswith("evaluate") or key == "rl.kind":
            origin = origins.pop(key)
            origins[key.replace("rl.", "rollout.").replace("evaluate.sample", "sample")] = origin
    return lock


@pytest.mark.parametrize(
    "content",
    [
        {"model": "nano", "data": {"train": "a.jsonl"}},
        {"model": "nano", "data": {"train": "a.jsonl"}, "rl": {"updates": 2}, "train": {"objective": "grpo"}},
        NEW,
        {**NEW, "rl": {}, "train": {**NEW["train"], "objective": "diffusion_nft"}},
        {**NEW, "rl": None, "evaluate": {}},
    ],
    ids=["language", "grpo", "flow with a rollout", "diffusion_nft by default", "flow"],
)
def test_an_old_lock_is_the_same_recipe(content):
    recipe = load_recipe(content)
    lock = lock_of_before(recipe)
    assert {"rollout", "sample"} <= set(lock["recipe"])
    again = load_recipe(lock)
    assert again.data == recipe.data
    assert load_recipe(again.to_lock()).data == recipe.data


def test_the_proof_that_uses_the_old_name_draws_what_it_drew():
    path = ROOT / "src" / "luthier" / "proofs" / "diffusion_nft.yaml"
    recipe = yaml.parse(path.read_text(encoding="utf-8"), path.name).data["recipe"]
    assert "rollout" in recipe
    flow, nft = (load_recipe(recipe, [method]).settings for method in ("flow", "diffusion_nft"))
    assert flow.rl == nft.rl == Denoise(**ROLLOUT)
