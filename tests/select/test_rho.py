"""rho: the reducible loss, and where the reference's losses come from."""

import pytest
import torch

from luthier import parts
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.data.batches import collate
from luthier.engine.score import score, with_column
from luthier.errors import ModelError, RecipeError
from luthier.modalities.language.columns import logprobs_of
from luthier.modalities.open import open_workspace
from luthier.models.policy import TokenPolicy
from luthier.recipe import load_recipe
from luthier.runs.run import Run
from luthier.select.base import Pool, keyed_uniform
from luthier.steps.train import training

RHO = parts.build("selector", {"kind": "rho", "reference": "held-out"})


def features_of(model, reference):
    rows = tiny_rows(8)
    column = score(TokenPolicy(reference), rows, ["logprobs"], 10_000)["logprobs"]
    rows = with_column(rows, "logprobs:held-out", column)
    with torch.no_grad():
        return rows, RHO.features(TokenPolicy(model), collate(rows), None)["reducible"]


def test_a_reference_that_is_the_model_scores_zero():
    _, found = features_of(tiny_model(), tiny_model())
    assert found.abs().max() < 1e-12


def test_the_score_is_the_difference_of_two_mean_losses():
    model, reference = tiny_model(), tiny_model(seed=3)
    rows, found = features_of(model, reference)
    loss = parts.build("selector", "max_loss")
    with torch.no_grad():
        one, other = (loss.features(TokenPolicy(m), collate(rows), None)["loss"] for m in (model, reference))
    assert torch.allclose(found, one - other, atol=1e-12)
    assert float(found.abs().max()) > 1e-3


def test_a_wrong_label_loses_to_one_that_can_be_learned():
    """Losses (model, reference): known (.1, .1), wrong (6, 6), learnable (3, 1)."""
    names = ("known", "wrong", "learnable")
    loss, known = torch.tensor([0.1, 6.0, 3.0]), torch.tensor([0.1, 6.0, 1.0])
    uniform = keyed_uniform(0, 1, names)
    one = parts.build("selector", {"kind": "rho", "reference": "x", "keep": 0.34})
    assert one.chosen(one.scores(Pool(names, {"reducible": loss - known}, uniform))) == [2]
    top = parts.build("selector", {"kind": "max_loss", "keep": 0.34})
    assert top.chosen(top.scores(Pool(names, {"loss": loss}, uniform))) == [1]


def recipe_with(**select):
    return load_recipe(
        {
            "model": {"path": "nano", "dtype": "float32"},
            "data": {"train": {"kind": "strings", "count": 60}},
            "train": {"select": {"kind": "rho", **select}},
            "budget": {"updates": 1},
        }
    )


def test_the_reference_must_be_named():
    with pytest.raises(RecipeError, match=r"train\.select.*reference"):
        recipe_with()


def test_a_run_scores_its_reference_once_and_trains(tmp_path):
    recipe = recipe_with(reference="nano")
    workspace = open_workspace(recipe, tmp_path)
    run = Run(recipe, tmp_path, cache=tmp_path)
    trainer, _ = training(run, workspace, lambda event: None, lambda: False)
    trainer.train()
    assert trainer.position.records == 16 and trainer.position.looked_rows == 16
    assert len(list((tmp_path / "scores").glob("*.npz"))) == 1
    again = logprobs_of(run, workspace, workspace.prepared.train, "nano")
    initial = logprobs_of(run, workspace, workspace.prepared.train, "initial")
    assert all((again[name] == initial[name]).all() for name in initial)
    assert len(list((tmp_path / "scores").glob("*.npz"))) == 1


def test_a_run_folder_is_a_reference_and_a_missing_one_is_refused(tmp_path):
    recipe = recipe_with(reference="nano")
    workspace = open_workspace(recipe, tmp_path)
    run = Run(recipe, tmp_path, cache=tmp_path)
    folder = tmp_path / "earlier" / "model"
    workspace.loaded.module.save_pretrained(folder)
    workspace.loaded.tokenizer.save_pretrained(folder)
    found = logprobs_of(run, workspace, workspace.prepared.train, str(tmp_path / "earlier"))
    initial = logprobs_of(run, workspace, workspace.prepared.train, "initial")
    assert all((found[name] == initial[name]).all() for name in initial)
    with pytest.raises(ModelError, match="no model folder"):
        logprobs_of(run, workspace, workspace.prepared.train, "./nowhere")
