from types import SimpleNamespace

import pytest

from luthier import parts
from luthier.compare.plan import plan
from luthier.recipe import load_recipe
from luthier.recipe.fingerprint import (
    ADDED_OPTIONS,
    NOT_PART_OF_A_RUN,
    file_digest,
    fingerprint,
    model_digest,
    task_fingerprint,
)
from luthier.recipe.settings import Denoise, slots

DATA = {
    "name": "a",
    "seed": 3,
    "model": {"path": "nano"},
    "train": {
        "objective": {"kind": "./mine.py", "power": 1.5},
        "tuner": [{"kind": "lora"}, {"kind": "./mine.py"}],
    },
    "rl": None,
    "out": "x",
    "observe": [],
    "compare": {},
}


def recipe(text="class Mine: é", path="./mine.py", **changes):
    objective = {**DATA["train"]["objective"], "kind": path}
    train = {"objective": objective, "tuner": [{"kind": "lora"}, {"kind": path}]}
    return SimpleNamespace(data={**DATA, "train": train, **changes}, text_of_parts={path: text})


def test_the_hashes_in_old_run_folders_still_fit():
    """Both numbers were computed by the version that had `rollout` and `sample` at the top of every recipe."""
    assert fingerprint(recipe()) == "d7bd81ffb4bc45a08b6fafd58b438cc0bcd6401ac7bbd05ac1c0ba1edfe5e240"
    task = task_fingerprint(recipe(), ("target", "retain"), {"d.jsonl": "ab"})
    assert task == "24997d2dea2458812dc0156e2b23b6687d55691dbd3a9810820d229b534bdcac"


LANGUAGE = {"model": "nano", "data": {"train": "data.jsonl"}}
DIFFUSION = {
    "model": "nano-digits",
    "data": {"train": "digits", "test": "10%"},
    "reward": "digit",
    "rollout": {"groups": 2},
}
OLD_FINGERPRINTS = {
    "sft": "25a920fcc7eeb41907cb6ce45605db5f3bb34652ee29497d99c0d1928743aad1",
    "grpo": "7d374c662f252c999dd5132f4dd620283de648ffd3b249fbcb82e6fa192f8f7b",
    "prefix_rft": "d29b109202eb3ef0cbd0cb541c05c5682de2f33196e6a7808d7940f8e975a64c",
    "ift": "735a3668b7c5fd8e4b0488cbbcbb8d9c32b20bdde1f06b269a37e2e81b97f124",
    "lfu": "fb5b22cb47debfcf717beb89dd3768d7491454397c1afc1dee818849b6efb20e",
    "loramoe": "4a29bc09c3fdee4f088a51de15fd027ef2d7bb2ee418ce2c75d6867000994930",
    "two_stage": "721d1005f379083120ea678bac34604e8f89acfe5fc6c16ec80c2c267e9df948",
}
"""Method → hash of LANGUAGE under it, computed by the version before `rl.kind` and the options of ADDED_OPTIONS."""


@pytest.mark.parametrize("method", OLD_FINGERPRINTS)
def test_a_recipe_has_the_hash_that_the_older_version_gave_it(method):
    assert fingerprint(load_recipe(LANGUAGE, [method])) == OLD_FINGERPRINTS[method]


@pytest.mark.parametrize(
    "content, base, runs",
    [
        (
            LANGUAGE,
            "4c71c425c169306861f097d3c2578d73825778c0332b61f90c0bd5e0518e2b3b",
            {
                "sft": "ba4ce826617c28ea109068b45348583f503bafe95ddbe55b247c05af2969dd93",
                "grpo": "9137dc4b44b7fe1bafa1ce5212ff908658e32560718dbff1c0872cc7a75b4aa9",
            },
        ),
        (
            DIFFUSION,
            "afac8eb80033db7d89f56cca843495f2298f5e2b4012a6b11ec3d4379bcd0989",
            {
                "flow": "d2e66fe471905660b600001022b4d6f5c3f67a690b4d577304c9abdbf787dfb4",
                "diffusion_nft": "32a67b14ed9de78e3d935170e42fb97ac137e1f2063020ee5094f61a1c1c7f9e",
            },
        ),
    ],
    ids=["language", "diffusion"],
)
def test_the_tasks_of_a_comparison_have_the_hashes_of_the_older_version(content, base, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no data.jsonl adds its own hash
    planned = plan(content, methods=list(runs))
    assert [task.fingerprint for task in planned.bases] == [base]
    assert {task.method: task.fingerprint for task in planned.runs({})} == runs


@pytest.mark.parametrize(
    "method, before, change",
    [
        ("grpo", ["train.objective.kl_coefficient=0.1"], "train.objective.k3_clamp=10"),
        ("grpo", [], "rl.updates=2"),
        ("ift", ["train.objective.residual_start=0"], "train.objective.residual_warmup=4"),
        ("lfu", [], "train.objective.coef=0.1"),
        ("lfu", [], "train.objective.states=tuple"),
        ("lfu", [], "train.objective.auxiliary=steering"),
        ("lfu", ["train.objective.auxiliary=steering"], "train.objective.coef=5.0"),
        ("loramoe", [], "train.tuner.pool=micro_batch"),
        ("prefix_rft", ["rl.advantages=split_prefix"], "rl.advantages=[{kind: split_prefix, prefix: centred}]"),
    ],
)
def test_a_setting_that_the_older_version_did_not_have_changes_the_hash(method, before, change):
    kept = [] if change.partition("=")[0] in "".join(before) else before
    assert fingerprint(load_recipe(LANGUAGE, [method], before)) != fingerprint(
        load_recipe(LANGUAGE, [method], [*kept, change])
    )


def test_the_rollout_of_a_diffusion_model_changes_the_hash():
    hashes = {
        fingerprint(load_recipe(DIFFUSION, ["diffusion_nft"], overrides))
        for overrides in ([], ["rl.shift=2"], ["rl.groups=3"], ["evaluate.sample.steps=3"])
    }
    assert len(hashes) == 4


def test_an_option_left_out_of_the_hash_is_one_of_its_part():
    for kind, option in ADDED_OPTIONS:
        default = ADDED_OPTIONS[kind, option]
        if kind == "denoise":
            assert Denoise.model_fields[option].default == default
        else:
            slot = next(slot for slot in slots() if any(entry.name == kind for entry in parts.catalogue(slot)))
            assert parts.load(slot, kind).model_fields[option].default == default


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
