"""A model that one step leaves to the next: its module, the training that changed it, how it is merged and saved."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.engine.checkpoints import save_companions
from luthier.engine.trainer import Trainer
from luthier.errors import RunError
from luthier.modalities.base import Workspace
from luthier.models.logits import is_exact
from luthier.recipe import Stage
from luthier.recipe.fingerprint import fingerprint


@dataclass
class StepModel:
    """A model in memory.

    Attributes:
        trainer: the training that changed it last, with its tuning still unmerged; None if there is none.
        weights_id: equal for models that were derived in the same way.
        trainings: how often its weights were changed since they were loaded.
    """

    module: nn.Module
    trainer: Trainer | None
    weights_id: str
    trainings: int = 0

    def merged(self) -> nn.Module:
        """The module with all tuning merged into its weights, which cannot be undone."""
        if self.trainer is not None:
            for tuner in self.trainer.tuners:  # in order of application: the lower tuner merges first
                self.module = tuner.merge(self.module)
            self.trainer = None
        return self.module

    def save(self, folder: Path, workspace: Workspace) -> nn.Module:
        """Write the model so that it loads without Luthier: as an adapter, or with all its weights.

        Returns the module that was written: a merged copy, or the model's own.
        """
        written = self.module
        shutil.rmtree(folder, ignore_errors=True)
        weights = folder / workspace.WEIGHTS
        weights.mkdir(parents=True)
        tuners = [] if self.trainer is None else list(self.trainer.tuners)
        # One adapter holds all changes only after a single training with a single tuner.
        if workspace.WHOLE or self.trainer is None or len(tuners) > 1 or (self.trainings > 1 and tuners[0].MERGES):
            # The evaluation that follows needs the unmerged module.
            copied = replace(self, module=copy.deepcopy(self.module)) if self.trainer is not None else self
            written = copied.merged()
            written.save_pretrained(weights)  # pyright: ignore[reportCallIssue]
        else:
            self.trainer.tuners[-1].save(self.module, self.trainer.masters.of_model(), weights)
        if self.trainer is not None:
            save_companions(self.trainer.policy.companions, folder.parent / "companions")
        workspace.save_assets(folder)
        return written


def save_and_read(model: StepModel, folder: Path, workspace: Workspace) -> dict[str, Any] | None:
    """Save a model, and compare what was saved with the module in memory; returns the facts of the comparison.

    Raises:
        RunError: the model cannot be saved, or what was saved is not the module.
    """
    try:
        written = model.save(folder, workspace)
    except (OSError, ValueError, NotImplementedError) as error:
        raise RunError(
            f"The trained model cannot be saved in {folder}: {' '.join(str(error).split())[:300]}",
            "The last checkpoint is kept: once the cause is gone, `--resume` saves the model.",
        ) from error
    try:
        return workspace.read_back(folder, written)
    except RunError:
        tuners = () if model.trainer is None else model.trainer.tuners
        if is_exact(written) or written is not model.module or not all(tuner.MERGES for tuner in tuners):
            raise
        # Rounding in another order (of units that were permuted) is no loss: merged, both compute the same.
        return workspace.read_back(folder, replace(model, module=copy.deepcopy(model.module)).merged())


def read_back_warnings(saved: dict[str, Any] | None) -> list[str]:
    """A sentence if what was saved could not be compared with the module in memory."""
    if saved is None or saved["difference"] is not None:
        return []
    return [f"The saved model was not read back: {saved['reason']}."]


def derived_id(weights_id: str, stage: Stage, tensors: Mapping[str, Tensor]) -> str:
    """The id of a model that a step derived: a hash of the start's id, the step's recipe and the changed tensors."""
    digest = hashlib.sha256(f"{weights_id}/{stage.name}/{fingerprint(stage.recipe)}".encode())
    for name, tensor in tensors.items():
        digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
