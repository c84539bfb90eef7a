"""Recipes of image and text encoders: a small SigLIP of transformers learns which digit a caption names."""

from pathlib import Path

import pytest
from transformers import AutoModel

from luthier.errors import DataError, ModelError, RecipeError
from luthier.modalities.open import open_workspace
from luthier.recipe import load_recipe, stages_of
from luthier.run_folder import read_jsonl
from luthier.steps.run import run_recipe
from luthier.steps.verify import verify

BASE = Path(__file__).parents[3] / "examples"
SMALL = {
    "extends": "encoders.yaml",
    "data": {"train": {"kind": "digits", "count": 500}, "validation": 40, "test": 60},
    "train": {"batch": {"records": 32}, "precision": "float32"},
    "model": {"config": {"vision_config": {"patch_size": 4}}},
    "budget": {"updates": 150},
}


def recipe(*overrides, **more):
    return load_recipe({**SMALL, **more}, overrides=list(overrides), base=BASE)


def test_pictures_and_captions_find_each_other(tmp_path):
    start = open_workspace(recipe(), None)
    before = start.shown(start.loaded.module, ["target"], None)["further"]
    record = run_recipe(recipe(), tmp_path, [])
    after = record["evaluation"]["further"]
    print(before, after)
    assert max(before.values()) < 0.25
    assert min(after["picture to caption, target"], after["caption to picture, target"]) > 0.45
    both = (after["picture to caption, target"] + after["caption to picture, target"]) / 2
    assert record["evaluation"]["target"]["mean"] == pytest.approx(both)
    line = read_jsonl(tmp_path / "evaluation.jsonl")[0]
    assert line["reference"].startswith("label ") and line["pictures"]["prompt"].startswith("data:image/png")
    saved = AutoModel.from_pretrained(tmp_path / "model")
    assert type(saved).__name__ == "SiglipModel"
    again = open_workspace(
        load_recipe({**_plain(), "model": str(tmp_path / "model")}, base=BASE),
        None,
    )
    assert (
        again.shown(again.loaded.module, ["target"], None)["further"]["picture to caption, target"]
        == (after["picture to caption, target"])
    )


def _plain():
    content = {key: value for key, value in SMALL.items() if key != "extends"}
    return {**content, "train": {"objective": {"kind": "siglip"}, "tuner": "full", "precision": "float32"}}


def test_captions_that_read_the_same_are_the_same():
    workspace = open_workspace(recipe(), None)
    rows = workspace.held_out("target")
    texts, images, captions = workspace.matches(workspace.loaded.module, rows)
    labels = [int(row.streams["label"].values) for row in rows]
    found = workspace.score(workspace.loaded.module, "target", _Silent())
    for index, item in enumerate(found.items):
        right = [labels[texts[index]] == labels[index], labels[images[index]] == labels[index]]
        assert item.score == sum(right) / 2 and item.right == all(right)
    assert len(set(captions)) == len(set(labels))


class _Silent:
    def phase(self, name, total=1):
        return self.progress

    def progress(self, done, total):
        pass


@pytest.mark.parametrize(
    "error, words, more",
    [
        (RecipeError, "`flow` trains denoisers; .* image and text encoders", {"train": {"objective": "flow"}}),
        (RecipeError, "`reward` has no effect for image and text encoders", {"reward": "digit"}),
        (
            RecipeError,
            "`evaluate.sample` has no effect for image and text encoders",
            {"evaluate": {"sample": {"steps": 4}}},
        ),
        (DataError, "holds text", {"data": {"train": "sums"}}),
        (ModelError, "cannot read the data", {"model": {"config": {"vision_config": {"num_channels": 3}}}}),
        (ModelError, "siglip cannot be built", {"model": {"config": {"text_config": {"vocab_size": "many"}}}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_told_before_training(error, words, more):
    with pytest.raises(error, match=words):
        made = recipe(**more)
        verify(stages_of(made))
        open_workspace(made, None)


def test_a_missing_array_is_named(tmp_path):
    import numpy

    numpy.savez(tmp_path / "pairs.npz", image=numpy.zeros((6, 1, 8, 8), dtype=numpy.float32))
    with pytest.raises(DataError, match="no `input_ids`"):
        open_workspace(
            recipe(data={"train": {"path": str(tmp_path / "pairs.npz")}, "validation": None, "test": None}), None
        )
