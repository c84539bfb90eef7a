"""Checkpoints survive kills and full disks."""

import errno
import json
import re

import pytest
import torch

from luthier.engine import checkpoints
from luthier.engine.checkpoints import Checkpoint
from luthier.engine.distributed import World
from luthier.errors import RunError


def saved(folder, update, keep=2):
    return checkpoints.save(
        folder, update, Checkpoint({"x": torch.full((3,), float(update))}, {"update": update}), keep
    )


def test_the_newest_are_kept_and_loaded(tmp_path):
    for update in (1, 2, 10):
        saved(tmp_path, update)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update-00000002", "update-00000010"]
    newest = checkpoints.newest(tmp_path)
    assert newest is not None
    loaded = checkpoints.load(newest)
    assert loaded.meta == {"update": 10} and torch.equal(loaded.tensors["x"], torch.full((3,), 10.0))


def test_none_at_first(tmp_path):
    assert checkpoints.newest(tmp_path / "absent") is None


def test_a_kill_while_writing_leaves_the_previous_one(tmp_path, monkeypatch):
    saved(tmp_path, 1)

    def killed(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 2)
    newest = checkpoints.newest(tmp_path)
    assert newest is not None and newest.name == "update-00000001"


def test_a_half_written_folder_is_never_taken_for_a_checkpoint(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / ".half-update-00000002").mkdir()
    (tmp_path / "update-00000003").mkdir()
    newest = checkpoints.newest(tmp_path)
    assert newest is not None and newest.name == "update-00000001"


def test_a_full_disk_is_said_and_loses_nothing(tmp_path, monkeypatch):
    saved(tmp_path, 1)

    def full(tensors, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(RunError, match="Earlier checkpoints are intact"):
        saved(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["update-00000001"]


def restored(folder, **more):
    tracked = checkpoints.Checkpoints(checkpoints.Saving(folder, fingerprint="f", **more), World())
    return tracked, tracked.restore()


def written(folder, *updates, inputs=None):
    for update in updates:
        meta = {"fingerprint": "f", "position": {"updates": update}, "inputs": inputs or {}}
        checkpoints.save(folder, update, Checkpoint({"x": torch.full((300,), float(update))}, meta), 9)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped byte": lambda folder: flip(folder / "state.safetensors"),
    "cut off": lambda folder: (folder / "state.safetensors").write_bytes(b"12345678"),
    "empty": lambda folder: (folder / "state.safetensors").write_bytes(b""),
    "no state": lambda folder: (folder / "state.safetensors").unlink(),
    "half a description": lambda folder: (folder / "meta.json").write_text("{"),
    "another description": lambda folder: (folder / "meta.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    written(tmp_path, 5, 10)
    damage(tmp_path / "update-00000010")
    tracked, checkpoint = restored(tmp_path)
    assert checkpoint is not None and float(checkpoint.tensors["x"][0]) == 5.0
    assert [path.name for path in tracked.damaged] == ["update-00000010"]
    damage(tmp_path / "update-00000005")
    with pytest.raises(RunError, match=r"All checkpoints .* are damaged: update-00000005, update-00000010"):
        restored(tmp_path)


@pytest.mark.parametrize("name", ["update-zzz", "update-1", "update-000000011", "update-00000011.bak"])
def test_a_folder_of_another_name_is_no_checkpoint(tmp_path, name):
    written(tmp_path, 10)
    (tmp_path / name).mkdir()
    (tmp_path / name / "meta.json").write_text("{}")
    assert restored(tmp_path)[1].meta["position"]["updates"] == 10


def test_other_inputs_are_refused_by_name(tmp_path):
    written(tmp_path, 5, inputs={"The training data (d.jsonl)": "a", "The model (m)": "b"})
    same = {"The training data (d.jsonl)": "a", "The model (m)": "b"}
    assert restored(tmp_path, inputs=same)[1] is not None
    for name in same:
        with pytest.raises(RunError, match=re.escape(name) + " has changed"):
            restored(tmp_path, inputs=same | {name: "other"})


def test_checkpoints_without_digests_are_still_read(tmp_path):
    written(tmp_path, 5)
    meta = tmp_path / "update-00000005" / "meta.json"
    older = {key: entry for key, entry in json.loads(meta.read_text()).items() if key not in ("state_sha256", "inputs")}
    meta.write_text(json.dumps(older))
    assert restored(tmp_path, inputs={"The model (m)": "b"})[1] is not None
