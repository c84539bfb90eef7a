"""Checkpoints survive kills and full disks."""

import errno

import pytest
import torch

from luthier.engine import checkpoints
from luthier.engine.checkpoints import Checkpoint
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
