"""Checkpoints: all that a run needs to continue bit for bit, written so that a kill cannot damage them."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.engine.distributed import World
from luthier.errors import RunError
from luthier.models.policy import Companion
from luthier.recipe.fingerprint import file_digest
from luthier.run_folder import sync

STATE, META, DIGEST = "state.safetensors", "meta.json", "state_sha256"
NAME = re.compile(r"update-\d{8}")
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
        inputs: name of an input, such as the training data → its digest; a checkpoint of other inputs is refused.
    """

    folder: Path
    every: int | Literal["auto"] | None = "auto"
    keep: int = 2
    fingerprint: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one training: whether one is due, and which position was saved last.

    Args:
        saving: None to save nothing.

    Attributes:
        damaged: checkpoints that `restore` passed over, newest first.
    """

    def __init__(self, saving: Saving | None, world: World):
        self.saving = saving
        self._world = world
        self._saved_at = time.perf_counter()
        self._saved_update = -1
        self.damaged: list[Path] = []

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
            origin = {"fingerprint": self.saving.fingerprint, "inputs": dict(self.saving.inputs)}
            checkpoint = Checkpoint(current.tensors, {**current.meta, **origin})
            save(self.saving.folder, update, checkpoint, self.saving.keep)
        self._world.barrier()

    def restore(self) -> Checkpoint | None:
        """The newest checkpoint that is intact, or None if there is none at all.

        Raises:
            RunError: all checkpoints are damaged, or the newest was written under another recipe or on other inputs.
        """
        if self.saving is None:
            return None
        paths = complete(self.saving.folder)
        for path in reversed(paths):
            try:
                checkpoint = load(path)
            except RunError:
                self.damaged.append(path)
                continue
            self._refuse_other(path, checkpoint.meta)
            self._saved_update = int(checkpoint.meta["position"]["updates"])
            return checkpoint
        if paths:
            raise RunError(
                f"All checkpoints under {self.saving.folder} are damaged: {', '.join(path.name for path in paths)}.",
                "Start a new run, or remove them: the run then starts from its first update.",
            )
        return None

    def _refuse_other(self, path: Path, meta: Mapping[str, Any]) -> None:
        assert self.saving is not None
        if meta["fingerprint"] != self.saving.fingerprint:
            raise RunError(
                f"The checkpoint {path} was written under another recipe.",
                "Resume with the recipe it was started with, or start a new run.",
            )
        for name, digest in meta.get("inputs", {}).items():  # older checkpoints name no inputs
            if self.saving.inputs.get(name, digest) != digest:
                raise RunError(
                    f"{name} has changed since the checkpoint {path} was written: half of the run would be on other"
                    " data or weights.",
                    "Bring back what the run was started with, or start a new run.",
                )


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
        (half / META).write_text(json.dumps({**checkpoint.meta, DIGEST: file_digest(half / STATE)}))
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
    for old in complete(folder)[:-keep]:
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
    paths = complete(folder)
    return paths[-1] if paths else None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint back.

    Raises:
        RunError: its state is missing, cut off, or has another digest than when it was written.
    """
    try:
        meta = json.loads((path / META).read_text())
        digest = meta.pop(DIGEST, None)
        if digest not in (None, file_digest(path / STATE)):  # older checkpoints have no digest
            raise RunError(f"The checkpoint {path} is damaged: its state is not what was written.")
        return Checkpoint(load_file(path / STATE), meta)
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise RunError(f"The checkpoint {path} is damaged: {error}.") from None


def complete(folder: Path) -> list[Path]:
    """The checkpoints under a folder whose writing was not interrupted, the oldest first."""
    # Half-written ones have another name until they are renamed; numbers are padded, so names sort by update.
    return sorted(path for path in folder.glob("update-*") if NAME.fullmatch(path.name) and (path / META).is_file())
