"""A resumed run finds the data and the weights that it began with, and passes over a damaged checkpoint."""

import json

import pytest

from luthier.errors import RunError
from luthier.steps.run import run_recipe
from support.runs import recipe, run_recipe_until_killed, with_words


@pytest.fixture
def killed(tmp_path):
    settings = recipe(with_words(tmp_path), "train.save.every=1", "budget.updates=3")
    run_recipe_until_killed(settings, tmp_path / "run")
    return settings, tmp_path


def change_one_record(path):
    lines = path.read_text().splitlines()
    # The records that train are those of no other split: some of these do.
    changed = [json.dumps({**json.loads(line), "completion": "another"}) for line in lines[:40]]
    path.write_text("\n".join([*changed, *lines[40:]]) + "\n")


def test_other_data_are_refused(killed):
    settings, folder = killed
    change_one_record(folder / "data.jsonl")
    with pytest.raises(RunError, match=r"The training data \(data.jsonl\) has changed"):
        run_recipe(settings, folder / "run", [])


def test_the_run_goes_on_from_the_checkpoint_before_a_damaged_one(killed):
    settings, folder = killed
    clean = run_recipe(settings, folder / "clean", [])
    for state in (folder / "run").glob("checkpoints/update-*/state.safetensors"):
        last = state
    copied = last.parent.with_name("update-00000099")
    copied.mkdir()
    (copied / "meta.json").write_bytes((last.parent / "meta.json").read_bytes())
    (copied / "state.safetensors").write_bytes(last.read_bytes()[:-1] + b"x")
    record = run_recipe(settings, folder / "run", [])
    assert any("update-00000099 was damaged" in warning for warning in record["warnings"])
    assert record["train"]["loss_last"] == clean["train"]["loss_last"]
