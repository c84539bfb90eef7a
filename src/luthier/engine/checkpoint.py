"""Checkpoints: everything a run needs to go on bit for bit, written so that a kill cannot spoil one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import RunError
from luthier.models.policy import Companion
from luthier.run_folder import sync

STATE, META = "state.safetensors", "meta.json"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name and a JSON-able description."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save(folder: Path, update: int, checkpoint: Checkpoint, keep: int) -> Path:
    """Write `folder/update-000123`, atomically, then remove all but the newest `keep`.

    Raises:
        RunError: the disk is full; earlier checkpoints are untouched.
    """
    target = folder / f"update-{update:08d}"
    half = folder / f".half-{target.name}"
    try:
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in checkpoint.tensors.items()}, half / STATE)
        (half / META).write_text(json.dumps(checkpoint.meta))
        for path in (half / STATE, half / META, half):
            sync(path)
        if target.exists():
            shutil.rmtree(target)
        half.rename(target)
        sync(folder)
    except Exception as error:
        shutil.rmtree(half, ignore_errors=True)
        if isinstance(error, OSError) or "No space left" in str(error):
            raise RunError(
                f"The checkpoint of update {update} could not be written to {folder}: {error}.",
                "Earlier checkpoints are intact. Free some space, then run again with --resume.",
            ) from error
        raise
    for old in _complete(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def save_companions(companions: Mapping[str, Companion], folder: Path) -> None:
    """Write each as `<name>.safetensors`: a result of the run, and no part of its model."""
    for name, companion in companions.items():
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {key: v.contiguous() for key, v in companion.module.state_dict().items()}, folder / f"{name}.safetensors"
        )


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint under a folder, or None."""
    found = _complete(folder)
    return found[-1] if found else None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint back."""
    return Checkpoint(load_file(path / STATE), json.loads((path / META).read_text()))


def _complete(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("update-*") if (path / META).is_file())
