import json
from pathlib import Path

import pytest

from luthier import parts
from luthier.errors import RecipeError
from luthier.recipe import load_recipe
from luthier.recipe.lock import versions

MINE = '''
"""My loss."""
from luthier import TokenObjective


class Mine(TokenObjective):
    """Version {n}."""

    power: float = {n}.0

    def token_loss(self, view):
        return -view.logprob
'''


@pytest.fixture
def locked(workshop, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    workshop.write("mine.py", MINE.format(n=1))
    recipe = load_recipe(workshop.recipe("train: {objective: ./mine.py}", "r.yaml"), ["lora8"], ["seed=4"])
    lock = json.loads(json.dumps(recipe.to_lock({"data_files": {"data.jsonl": "ab12"}})))
    return recipe, lock


def test_a_lock_repeats_the_recipe(locked):
    recipe, lock = locked
    again = load_recipe(lock)
    assert again == recipe
    assert again.to_lock({"data_files": {"data.jsonl": "ab12"}}) == lock


def test_a_lock_in_a_file_starts_from_the_folder_of_its_recipe(locked, workshop):
    recipe, lock = locked
    path = workshop.write("runs/r/1/lock.json", json.dumps(lock))
    again = load_recipe(path)
    assert (again.base, again.name, again.data) == (workshop.folder, "r", recipe.data)


def test_a_lock_tells_versions_and_extras(locked):
    _, lock = locked
    assert lock["data_files"] == {"data.jsonl": "ab12"}
    assert lock["parts"] == {"./mine.py": MINE.format(n=1)}
    assert lock["versions"]["torch"] == versions()["torch"] is not None


@pytest.mark.parametrize("happened", ["changed", "gone"])
def test_a_part_file_that_changed_is_taken_from_the_lock(locked, workshop, happened):
    _, lock = locked
    if happened == "changed":
        workshop.write("mine.py", MINE.format(n=2))
    else:
        (workshop.folder / "mine.py").unlink()
    again = load_recipe(lock)
    part = again.build_parts()["train.objective"]
    assert (part.power, part.kind) == (1.0, "mine")
    assert list(again.text_of_parts.values()) == [MINE.format(n=1)]


OLD = """
from typing import ClassVar

from luthier import TokenObjective


class Mine(TokenObjective):
    FACE: ClassVar[str] = "token"
    HOLDS: ClassVar = ("weights",)  # HOLDS in a comment stays
    power: float = 1.0

    def token_loss(self, view):
        return -view.logprob
"""


def test_a_part_locked_under_former_names_of_constants_is_read_under_those_of_today(locked, workshop):
    """Its owner has corrected the file since; the lock still holds the text of before."""
    _, lock = locked
    lock["parts"] = {"./mine.py": OLD}
    again = load_recipe(lock)
    objective = parts.build("objective", again.settings.train.objective, again.base)
    assert objective.DETACHED == ("weights",) and objective.MODALITY == "language"
    assert "# HOLDS in a comment stays" in Path(again.settings.train.objective["kind"]).read_text()


def test_a_damaged_copy_in_the_cache_is_replaced(locked, workshop):
    _, lock = locked
    (workshop.folder / "mine.py").unlink()
    copied = load_recipe(lock).data["train"]["objective"]["kind"]
    workshop.write(copied, "class Mine:")
    assert load_recipe(lock).build_parts()["train.objective"].power == 1.0


def test_a_cache_that_cannot_be_written(locked, workshop, monkeypatch):
    _, lock = locked
    workshop.write("mine.py", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(workshop.write("a_file", "")))
    with pytest.raises(RecipeError, match="cannot be written"):
        load_recipe(lock)


def test_methods_and_overrides_apply_to_a_lock(locked):
    _, lock = locked
    again = load_recipe(lock, ["dft"], ["train.batch.records=3"])
    assert again.data["train"]["objective"]["kind"] == "dft"
    assert again.data["train"]["batch"]["records"] == 3
    assert again.origins["train.optimizer.lr"] == "advice of dft"
    assert again.origins["seed"] == "command line"


def test_locks_of_another_form_or_damaged(locked):
    _, lock = locked
    with pytest.raises(RecipeError, match="form 99"):
        load_recipe({**lock, "luthier_lock": 99})
    with pytest.raises(RecipeError, match="no `origins`"):
        load_recipe({key: value for key, value in lock.items() if key != "origins"})


def test_relative_files_of_a_lock_are_found_from_anywhere(locked, monkeypatch, tmp_path):
    recipe, lock = locked
    monkeypatch.chdir(tmp_path)
    assert Path(load_recipe(lock).base) == recipe.base
