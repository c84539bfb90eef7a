"""Checkpoints: everything a run needs to go on bit for bit, written so that a kill cannot spoil one."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.engine.distributed import World
from luthier.errors import RunError
from luthier.models.policy import Companion
from luthier.run_folder import sync

STATE, META = "state.safetensors", "meta.json"
SAVE_SECONDS = 300.0
"""How far apart checkpoints are that `save.every: auto` writes."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name and a JSON-able description."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Saving:
    """Where checkpoints go, after how many updates ("auto": every SAVE_SECONDS; None: at the end), how many stay."""

    folder: Path
    every: int | Literal["auto"] | None = "auto"
    keep: int = 2
    fingerprint: str = ""


class Checkpoints:
    """The checkpoints of one training: when one is due, and which position was saved last.

    Args:
        saving: None where nothing is saved.
    """

    def __init__(self, saving: Saving | None, world: World):
        self.saving = saving
        self._world = world
        self._saved_at = time.perf_counter()
        self._saved_update = -1

    def due(self, update: int) -> bool:
        """Whether a checkpoint is to be written after this update, by this rank's clock."""
        if self.saving is None or self.saving.every is None:
            return False
        if self.saving.every == "auto":
            return time.perf_counter() - self._saved_at > SAVE_SECONDS
        return update % self.saving.every == 0

    def save(self, update: int, state: Callable[[], Checkpoint]) -> None:
        """Write the state after an update (rank 0), unless it was saved already; all ranks wait for it.

        Raises:
            RunError: the disk is full; earlier checkpoints are untouched.
        """
        if self.saving is None or self._saved_update == update:
            return
        self._saved_at, self._saved_update = time.perf_counter(), update
        if self._world.rank == 0:
            current = state()
            checkpoint = Checkpoint(current.tensors, {**current.meta, "fingerprint": self.saving.fingerprint})
            save(self.saving.folder, update, checkpoint, self.saving.keep)
        self._world.barrier()

    def restore(self) -> Checkpoint | None:
        """The newest checkpoint, or None.

        Raises:
            RunError: it was written under another recipe.
        """
        path = None if self.saving is None else newest(self.saving.folder)
        if path is None or self.saving is None:
            return None
        checkpoint = load(path)
        if checkpoint.meta["fingerprint"] != self.saving.fingerprint:
            raise RunError(
                f"The checkpoint {path} was written under another recipe.",
                "Resume with the recipe it was started with, or start a new run.",
            )
        self._saved_update = int(checkpoint.meta["position"]["updates"])
        return checkpoint


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
