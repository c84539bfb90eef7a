"""A model as steps hand it on: what trained it, how its tuning is merged, how it is saved."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from luthier.engine.checkpoints import save_companions
from luthier.engine.trainer import Trainer
from luthier.modalities.base import Workspace
from luthier.recipe import Stage
from luthier.runs.run import fingerprint


@dataclass
class StepModel:
    """A model in memory: the module, what trained it last (None: nothing), an id that its derivation decides.

    `trainings` counts how often its weights were changed since they were loaded.
    """

    module: nn.Module
    trainer: Trainer | None
    weights_id: str
    trainings: int = 0

    def merged(self) -> nn.Module:
        """The module with all tuning folded in, for good."""
        if self.trainer is not None:
            for tuner in self.trainer.tuners:  # what stands below merges first
                self.module = tuner.merge(self.module)
            self.trainer = None
        return self.module

    def save(self, folder: Path, workspace: Workspace) -> None:
        """Write it, loadable without Luthier; after several trainings or tuners the whole model: no adapter is all."""
        shutil.rmtree(folder, ignore_errors=True)
        weights = folder / workspace.WEIGHTS
        weights.mkdir(parents=True)
        tuners = [] if self.trainer is None else list(self.trainer.tuners)
        if workspace.WHOLE or self.trainer is None or len(tuners) > 1 or (self.trainings > 1 and tuners[0].MERGES):
            copied = replace(self, module=copy.deepcopy(self.module)) if self.trainer is not None else self
            copied.merged().save_pretrained(weights)  # pyright: ignore[reportCallIssue]
        else:
            self.trainer.tuners[-1].save(self.module, self.trainer.masters.of_model(), weights)
        if self.trainer is not None:
            save_companions(self.trainer.policy.companions, folder.parent / "companions")
        workspace.save_assets(folder)


def derived_id(weights_id: str, stage: Stage, tensors: Mapping[str, Tensor]) -> str:
    """An id of what a step made of a model: where it started, what the step says, the bits of all that it changed."""
    digest = hashlib.sha256(f"{weights_id}/{stage.name}/{fingerprint(stage.recipe)}".encode())
    for name, tensor in tensors.items():
        digest.update(name.encode() + tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
