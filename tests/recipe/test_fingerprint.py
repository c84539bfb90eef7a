from types import SimpleNamespace

import pytest

from luthier.recipe.fingerprint import NOT_PART_OF_A_RUN, file_digest, fingerprint, model_digest, task_fingerprint

DATA = {
    "name": "a",
    "seed": 3,
    "model": {"path": "nano"},
    "train": {
        "objective": {"kind": "./mine.py", "power": 1.5},
        "tuner": [{"kind": "lora"}, {"kind": "./mine.py"}],
    },
    "out": "x",
    "observe": [],
    "compare": {},
}


def recipe(text="class Mine: é", path="./mine.py", **changes):
    objective = {**DATA["train"]["objective"], "kind": path}
    train = {"objective": objective, "tuner": [{"kind": "lora"}, {"kind": path}]}
    return SimpleNamespace(data={**DATA, "train": train, **changes}, text_of_parts={path: text})


def test_the_hashes_in_old_run_folders_still_fit():
    assert fingerprint(recipe()) == "9b7febfa94ce0829ed9e9b8c7b2dad5ce66f109bb8c0eadcd8b2ed7aa19ce392"
    task = task_fingerprint(recipe(), ("target", "retain"), {"d.jsonl": "ab"})
    assert task == "0cfd4a95e2359fd858b7097a8927beb284fe013121d01b50969b6907559dc5ae"


@pytest.mark.parametrize("key", NOT_PART_OF_A_RUN)
def test_what_does_not_change_a_run_does_not_change_its_hashes(key):
    changed = recipe(**{key: "another"})
    assert fingerprint(changed) == fingerprint(recipe())
    assert task_fingerprint(changed, ("target",), {}) == task_fingerprint(recipe(), ("target",), {})


def test_what_changes_a_run_changes_both_hashes():
    for changed in (recipe(seed=4), recipe(text="class Mine: pass"), recipe(model={"path": "other"})):
        assert fingerprint(changed) != fingerprint(recipe())
        assert task_fingerprint(changed, ("target",), {}) != task_fingerprint(recipe(), ("target",), {})


def test_the_sets_and_the_data_are_part_of_a_task():
    plain = task_fingerprint(recipe(), ("target",), {})
    assert task_fingerprint(recipe(), ("retain",), {}) != plain != task_fingerprint(recipe(), ("target",), {"d": "a"})


def test_a_part_file_that_lies_elsewhere_is_the_same_run():
    assert fingerprint(recipe(path="/cache/mine.py")) == fingerprint(recipe())


def test_a_model_is_known_by_the_names_and_contents_of_its_files(tmp_path):
    files = [tmp_path / "config.json", tmp_path / "model.safetensors"]
    for file in files:
        file.write_text(file.name)
    assert file_digest(files[0]) == "587cb980af76fdc7e52369fd0b9d926dff266976b6f8ac631e358fecc49ff8cf"
    known = model_digest(files)
    assert len(known) == 16 and model_digest([files[1], files[0]]) != known
    files[1].rename(tmp_path / "other.safetensors")
    assert model_digest([files[0], tmp_path / "other.safetensors"]) != known
