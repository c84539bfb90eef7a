"""Checkpoints: all that a run needs to continue bit for bit, written so that a kill cannot damage them."""

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
"""Seconds between the checkpoints of `save.every: auto`."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and a description that JSON can hold."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Saving:
    """Folder of checkpoints, updates between them, and how many are kept.

    Attributes:
        every: in updates; "auto" for every SAVE_SECONDS, None for the end only.
        fingerprint: of the recipe; a checkpoint of another one is refused.
    """

    folder: Path
    every: int | Literal["auto"] | None = "auto"
    keep: int = 2
    fingerprint: str = ""


class Checkpoints:
    """The checkpoints of one training: whether one is due, and which position was saved last.

    Args:
        saving: None to save nothing.
    """

    def __init__(self, saving: Saving | None, world: World):
        self.saving = saving
        self._world = world
        self._saved_at = time.perf_counter()
        self._saved_update = -1

    def due(self, update: int) -> bool:
        """Whether to write a checkpoint after this update, by this rank's clock."""
        if self.saving is None or self.saving.every is None:
            return False
        if self.saving.every == "auto":
            return time.perf_counter() - self._saved_at > SAVE_SECONDS
        return update % self.saving.every == 0

    def save(self, update: int, state: Callable[[], Checkpoint]) -> None:
        """Write the state after an update (rank 0), unless it was saved already; all ranks wait.

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
            RunError: the checkpoint was written under another recipe.
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
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, half / STATE)
        (half / META).write_text(json.dumps(checkpoint.meta))
        # Data before the rename: else a power cut could leave the name in place of empty files.
        for path in (half / STATE, half / META, half):
            sync(path)
        if target.exists():
            shutil.rmtree(target)
        half.rename(target)
        sync(folder)
    except Exception as error:
        shutil.rmtree(half, ignore_errors=True)
        # safetensors raises an error of its own for a full disk.
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
    """Write each companion as `<name>.safetensors`, apart from the model."""
    for name, companion in companions.items():
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: tensor.contiguous() for key, tensor in companion.module.state_dict().items()}
        save_file(tensors, folder / f"{name}.safetensors")


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint under a folder, or None."""
    complete = _complete(folder)
    return complete[-1] if complete else None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint back."""
    return Checkpoint(load_file(path / STATE), json.loads((path / META).read_text()))


def _complete(folder: Path) -> list[Path]:
    # Half-written ones have another name until they are renamed; numbers are padded, so names sort by update.
    return sorted(path for path in folder.glob("update-*") if (path / META).is_file())
