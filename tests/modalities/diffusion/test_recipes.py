"""Recipes of denoisers, whole: flow and diffusion_nft on a tiny transformer of diffusers, resume, and mistakes."""

import io
import json
import re
from pathlib import Path

import numpy
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from luthier.compare import compare
from luthier.errors import DataError, ModelError, RecipeError
from luthier.modalities.diffusion.workspace import LEVELS
from luthier.modalities.open import open_workspace
from luthier.recipe import load_recipe, stages_of
from luthier.run_folder import read_jsonl, write_json
from luthier.runs.stop import Stop
from luthier.steps.check_page import check_recipe
from luthier.steps.evaluate import evaluate_model
from luthier.steps.run import run_recipe
from luthier.steps.verify import verify

diffusers = pytest.importorskip("diffusers")

ROOT = Path(__file__).parents[3]
TINY = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
WEIGHTS = "model/transformer/diffusion_pytorch_model.safetensors"
SMALL = {
    "extends": "denoiser.yaml",
    "model": {"config": TINY},
    "data": {"train": {"kind": "digits", "count": 60}, "validation": 6, "test": 8},
    "train": {"batch": {"records": 16}, "precision": "float32"},
    "rl": {"groups": 2, "size": 6, "steps": 4, "updates": 2},
    "evaluate": {"sample": {"steps": 3}},
    "budget": {"updates": 5},
}
NFT = {"train": {**SMALL["train"], "objective": "diffusion_nft"}}


def recipe(*overrides, **more):
    return load_recipe({**SMALL, **more}, overrides=list(overrides), base=ROOT / "examples")


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    """A run of flow with `explained` as its score, and its record."""
    folder = tmp_path_factory.mktemp("flow")
    return folder, run_recipe(recipe("reward=auto"), folder, [])


def test_a_run_of_a_denoiser_made_from_a_config_is_told_who_evaluates_it(flow):
    folder, _ = flow
    write_json(folder / "lock.json", recipe("reward=auto").to_lock())
    with pytest.raises(RecipeError, match="scores language models"):
        evaluate_model(str(folder), data="x.jsonl", metric=None, limit=None, overrides=[], console=Console())


def test_a_run_leaves_scores_pictures_and_a_model_that_diffusers_loads(flow):
    folder, record = flow
    assert record["status"] == "done" and record["train"]["updates"] == 5 and record["train"]["records"] == 80
    target = record["evaluation"]["target"]
    assert (target["metric"], target["n"]) == ("explained", 8) and 0 <= target["mean"] < 1
    assert set(record["evaluation"]["further"]) == {"flow loss, target", "flow loss, validation"}
    lines = [line for line in read_jsonl(folder / "evaluation.jsonl") if line["set"] == "target"]
    assert all(line["prompt"].startswith("label ") for line in lines)
    assert all(uri.startswith("data:image/png;base64,") for line in lines for uri in line["pictures"].values())
    assert (folder / "samples-target.png").read_bytes().startswith(b"\x89PNG")
    module = diffusers.SD3Transformer2DModel.from_pretrained(folder / "model" / "transformer")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "model" / "scheduler")
    assert module.config.num_layers == 1 and scheduler.config.shift == 1.0
    saved = load_file(folder / WEIGHTS)
    before = open_workspace(recipe(), None).loaded.module.state_dict()
    assert any(not torch.equal(saved[name], value) for name, value in before.items() if name in saved)


def test_what_a_run_left_is_a_model_and_draws_the_same(flow):
    folder, record = flow
    content = {key: value for key, value in SMALL.items() if key != "extends"}
    train = {"objective": "flow", "tuner": "full", "precision": "float32"}
    again = load_recipe({**content, "model": str(folder / "model"), "train": train}, base=ROOT / "examples")
    workspace = open_workspace(again, None)
    found = workspace.score(workspace.loaded.module, "target", _Silent())
    assert found.mean == pytest.approx(record["evaluation"]["target"]["mean"], abs=1e-6)


class _Silent:
    def phase(self, name, total=1):
        return lambda done, total: None


def test_explained_is_one_less_the_loss_over_that_of_predicting_nothing():
    workspace = open_workspace(recipe("reward=auto"), None)
    rows, module = workspace.held_out("target"), workspace.loaded.module
    clean = numpy.stack([row.streams["latent"].values for row in rows])
    noise = [workspace._noise(rows, f"loss-{index}").numpy() for index in range(LEVELS)]
    size = numpy.mean([((one - clean) ** 2).reshape(len(rows), -1).mean(1) for one in noise], axis=0)
    found = numpy.array(workspace._losses(workspace.policy(module), rows))
    assert found[:, 1] == pytest.approx((1 - found[:, 0] / size).clip(0), abs=1e-5) and (found[:, 0] > 0).all()
    with torch.no_grad():
        for parameter in module.proj_out.parameters():
            parameter.zero_()
    nothing = numpy.array(workspace._losses(workspace.policy(module), rows))
    assert nothing[:, 0] == pytest.approx(size, rel=1e-5) and nothing[:, 1] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("more", [{}, NFT], ids=["flow", "diffusion_nft"])
def test_stopped_and_resumed_it_ends_in_the_same_bits(more, tmp_path, monkeypatch):
    run_recipe(recipe(**more), tmp_path / "whole", [])
    for updates in (1, 3):
        with monkeypatch.context() as patch:
            path = tmp_path / "broken" / "metrics.jsonl"
            patch.setattr(Stop, "requested", lambda self, path=path, n=updates: _updates(path) >= n)
            assert run_recipe(recipe(**more), tmp_path / "broken", [])["status"] == "stopped"
        assert _updates(path) == updates
    record = run_recipe(recipe(**more), tmp_path / "broken", [])
    assert record["status"] == "done" and _updates(path) == 5
    one, other = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "broken"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    whole, broken = (read_jsonl(tmp_path / name / "evaluation.jsonl") for name in ("whole", "broken"))
    assert whole == broken and {line["metric"] for line in whole} == {"digit"}


def _updates(path):
    return sum("loss" in line for line in read_jsonl(path)) if path.is_file() else 0


def test_a_rollout_says_what_its_samples_earned(tmp_path):
    record = run_recipe(recipe(train={**NFT["train"], "tuner": {"kind": "lora", "r": 2}}), tmp_path, [])
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert all(0 <= line["reward"] <= 1 and "kl" in line for line in lines) and record["train"]["updates"] == 5
    config = json.loads((tmp_path / "model" / "transformer" / "config.json").read_text())
    assert config["_class_name"] == "SD3Transformer2DModel"  # folded in: no adapter is left over
    diffusers.SD3Transformer2DModel.from_pretrained(tmp_path / "model" / "transformer")


def test_a_judge_of_weight_0_is_shown_and_moves_nothing(tmp_path):
    """The same weights and scores with it and without; what it saw stands beside the score."""
    judged = [{"kind": "digit"}, {"kind": "digit", "seed": 1, "weight": 0}]
    one, other = (
        run_recipe(recipe(**NFT, reward=reward), tmp_path / name, [])["evaluation"]
        for name, reward in (("alone", "digit"), ("judged", judged))
    )
    assert one["target"]["mean"] == other["target"]["mean"] == other["further"]["digit, target"]
    assert set(other["further"]) - set(one["further"]) == {
        f"{name}, {split}" for name in ("digit", "digit_2") for split in ("target", "validation")
    }
    assert other["further"]["digit_2, target"] not in (one["target"]["mean"], 0)
    assert other["target"]["metric"] == "digit"
    saved = [load_file(tmp_path / name / WEIGHTS) for name in ("alone", "judged")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_the_packaged_denoiser_draws_digits():
    digits = {"train": {"kind": "digits", "count": 20}, "test": {"kind": "digits", "count": 100, "seed": 1}}
    judges = ["digit", {"kind": "digit", "seed": 1, "weight": 0}]
    train = {"objective": "flow", "tuner": "full", "precision": "float32"}
    workspace = open_workspace(
        load_recipe({"model": "nano-digits", "data": digits, "reward": judges, "train": train}), None
    )
    found = workspace.score(workspace.loaded.module, "target", _Silent())
    assert found.mean > 0.35 and found.further["digit_2"] > 0.35


def test_the_base_does_not_depend_on_the_seed_of_a_run():
    one, other = (open_workspace(recipe(f"seed={seed}"), None).loaded for seed in (0, 1))
    third = open_workspace(recipe("model.seed=1"), None).loaded
    weights = [dict(loaded.module.named_parameters())["proj_out.weight"] for loaded in (one, other, third)]
    assert torch.equal(weights[0], weights[1]) and one.weights_id == other.weights_id
    assert not torch.equal(weights[0], weights[2]) and one.weights_id != third.weights_id


def cached(folder, **changed):
    draw = numpy.random.default_rng(0)
    shapes = {"latents": (12, 4, 8, 8), "prompt_embeds": (12, 5, 10), "pooled": (12, 10)}
    arrays = {name: torch.from_numpy(draw.standard_normal(shape).astype("float32")) for name, shape in shapes.items()}
    save_file({**arrays, **changed}, folder / "latents.safetensors")
    return {"path": str(folder / "latents.safetensors"), "columns": {"latent": "latents", "text": "prompt_embeds"}}


def test_cached_latents_and_prompt_embeddings_from_a_file(tmp_path):
    data = {"train": cached(tmp_path), "validation": None, "test": 3}
    config = {**TINY, "in_channels": 4, "out_channels": 4}
    record = run_recipe(recipe("reward=auto", data=data, model={"config": config}), tmp_path / "run", [])
    assert record["train"]["data"]["counts"] == {"train": 9, "validation": 0, "test": 3}
    (line, *_) = read_jsonl(tmp_path / "run" / "evaluation.jsonl")
    assert line["prompt"] == "text [5, 10], pooled [10]" or line["prompt"] == "pooled [10], text [5, 10]"


@pytest.mark.parametrize(
    "error, words, more",
    [
        (RecipeError, r"`sft` trains language models; .* of the denoisers", {"train": {"objective": "sft"}}),
        (RecipeError, "`siglip` trains image and text encoders", {"train": {"objective": "siglip"}}),
        (RecipeError, "`rl.kind: generate` is of rollouts of language models", {"rl": {"kind": "generate"}}),
        (RecipeError, "`rl.passes` is of rollouts of language models", {"rl": {"passes": 2}}),
        (RecipeError, "learns from `optimality`", {**NFT, "rl": None}),
        (RecipeError, "`data.max_tokens` has no effect for denoisers", {"data": {**SMALL["data"], "max_tokens": 99}}),
        (
            RecipeError,
            "`generate` has no effect for denoisers: nothing is written",
            {"generate": {"max_new_tokens": 9}},
        ),
        (RecipeError, "`steps` has no effect for denoisers", {"steps": {"one": {"do": "train"}}}),
        (RecipeError, "`evaluate.metric` has no effect for denoisers", {"evaluate": {"metric": "exact"}}),
        (RecipeError, "the recipe has no `reward`", {**NFT, "reward": "auto"}),
        (RecipeError, "budget is in epochs", {**NFT, "budget": {"epochs": 1}}),
        (RecipeError, "reward `length` judges outputs of language models", {"reward": {"kind": "length"}}),
        (RecipeError, "`loramoe` cannot be merged", {"train": {"objective": "flow", "tuner": "loramoe"}}),
        (RecipeError, "exclude each other", {"model": {"path": "x", "config": TINY}}),
        (ModelError, "Did you mean `SD3Transformer2DModel`", {"model": {"config": {"_class_name": "SD3Transformer"}}}),
        (ModelError, "SD3Transformer2DModel cannot be made", {"model": {"config": {**TINY, "no_such_option": 1}}}),
        (ModelError, "returns .* for a latent", {"model": {"config": {**TINY, "out_channels": 2}}}),
        (ModelError, "cannot read the data", {"model": {"config": {**TINY, "joint_attention_dim": 11}}}),
        (DataError, "holds text", {"data": {"train": "sums"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_told_before_training(error, words, more):
    with pytest.raises(error, match=words):
        made = recipe(**more)
        verify(stages_of(made))
        open_workspace(made, None)


def test_an_embedding_that_is_missing_is_named(tmp_path):
    data = {"train": cached(tmp_path), "validation": None, "test": 3}
    data["train"]["columns"] = {"latent": "latents"}
    config = {**TINY, "in_channels": 4, "out_channels": 4}
    with pytest.raises(ModelError, match="reads `text`, which the data do not have"):
        open_workspace(recipe(data=data, model={"config": config}), None)


def test_a_scheduler_of_another_path_is_refused(flow, tmp_path):
    (tmp_path / "model" / "scheduler").mkdir(parents=True)
    (tmp_path / "model" / "transformer").symlink_to(flow[0] / "model" / "transformer")
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    content = {key: value for key, value in SMALL.items() if key != "extends"}
    with pytest.raises(ModelError, match="is a DDPMScheduler"):
        open_workspace(load_recipe({**content, "model": str(tmp_path / "model")}), None)


def test_language_models_are_not_asked_how_to_draw():
    with pytest.raises(RecipeError, match=r"as `sample`.*evaluate.sample` has no effect for language models"):
        load_recipe({"extends": "small.yaml", "sample": {"steps": 3}}, base=ROOT / "examples")
    with pytest.raises(RecipeError, match=r"as `rollout`.* is of rollouts of denoisers; .* one of the language"):
        load_recipe({"extends": "small.yaml", "rollout": {"steps": 3}}, base=ROOT / "examples")
    with pytest.raises(RecipeError, match=r"`model.config` has no effect for language models"):
        load_recipe({"model": {"config": {"model_type": "llama"}}, "data": {"train": "sums"}})


def test_check_says_what_a_recipe_trains(flow):
    seen = io.StringIO()
    check_recipe(recipe(**NFT), True, Console(file=seen, width=200))
    text = seen.getvalue()
    assert "SD3Transformer2DModel" in text and "train 46, validation 6, test 8" in text and "latent [1, 8, 8]" in text
    fitting = re.search(r"methods that fit\n((?: {2}.*\n)+)", text)[1].split()
    assert {"flow", "diffusion_nft"} <= set(fitting) and not {"sft", "dft", "grpo", "siglip", "loramoe"} & set(fitting)
    assert "condition:" not in text and "records/s" in text and "estimated" not in text
    with pytest.raises(RecipeError, match="one of the denoisers, and `luthier eval` scores language models"):
        evaluate_model(
            str(flow[0] / "model"), data="sums", metric="auto", limit=None, overrides=[], console=Console(file=seen)
        )


@pytest.mark.slow
def test_compare_shows_the_samples_of_base_and_methods(tmp_path):
    made = recipe("train.objective=flow", f"out={json.dumps(str(tmp_path))}")
    page = compare(made, methods=["flow", "diffusion_nft"], console=Console(file=io.StringIO())).read_text()
    assert "Samples side by side" in page and page.count('class="picture"') == 8 * 4
    assert "flow loss, target" in page and "records/s" in page
    results = json.loads((tmp_path / "recipe" / "1" / "results.json").read_text())
    assert [row["label"] for row in results["rows"]] == ["base", "flow", "diffusion_nft"]
    assert results["metric"]["name"] == "digit" and results["counts"] == "records"
