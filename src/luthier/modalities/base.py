"""Workspace: the loaded model and prepared data of a recipe, and everything that depends on the modality."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from luthier.data.batches import Layout
from luthier.data.prepare import Prepared
from luthier.engine.assemble import Parts, tuned_policy
from luthier.engine.hidden_cache import HiddenStateCache
from luthier.engine.source import Records, RowSource
from luthier.evals.base import Evaluation
from luthier.models.context import checkpoint_layers
from luthier.models.loading.load import Loaded, fast_bfloat16
from luthier.recipe import Recipe
from luthier.runs.journal import Journal
from luthier.runs.run import Run
from luthier.tuners.base import TunerInputs
from luthier.types import Row

Log = Callable[[dict[str, Any]], None]
MICRO_RECORDS = {"cpu": 256, "cuda": 16}
"""Records per forward where records are arrays and not tokens. The numbers are for small records on a processor and
for cached latents on a GPU."""
MICRO_TOKENS = {"cpu": 512, "cuda": 16384}
"""Positions per forward when `micro` is auto. On a CPU 512 is as fast as 4096 and takes 1 GB less (bench/micro.py)."""
LARGE, MICRO_TOKENS_OF_LARGE = 50_000_000, 256
"""Parameters from which the CPU gets half as many positions: SmolLM2-135M needs 0.4 GiB less. Smaller models
would only slow down."""


@dataclass(frozen=True)
class Workspace(ABC):
    """A recipe's model and data, ready to train and evaluate. A subclass for each modality.

    COUNTS: what the length of a row counts.
    WEIGHTS: folder of the weights within the folder of a saved model; "" is that folder itself.
    WHOLE: a model is always saved with its tuning merged.
    """

    recipe: Recipe
    device: torch.device
    loaded: Loaded
    prepared: Prepared
    COUNTS: ClassVar[Literal["tokens", "records"]] = "records"
    WEIGHTS: ClassVar[str] = ""
    WHOLE: ClassVar[bool] = True

    @abstractmethod
    def policy(self, module: nn.Module) -> Any:
        """The view of a module that objectives and solvers work with."""

    def rows(self, run: Run, parts: Parts) -> list[Row]:
        """The training rows with every column that these parts read."""
        return self.prepared.train

    def source(self, parts: Parts, rows: list[Row], policy: Any, layout: Layout, log: Log) -> RowSource:
        """Where the rows of each update come from."""
        return Records.of(self.recipe, parts, rows)

    def states(self, run: Run, parts: Parts, rows: Sequence[Row]) -> HiddenStateCache | None:
        """Hidden states of the initial model at the rows, or None where the reference is run at every update."""
        return None

    def online_references(self, parts: Parts) -> Collection[str]:
        """References that run during training, besides those that the objective names."""
        return ()

    def tune(self, run: Run, parts: Parts, rows: list[Row], alone: bool) -> Any:
        """The policy to train: the model with the tuners applied.

        Args:
            alone: no later training carries this one on. Otherwise the reference will meet other rows too, and hidden
                states of these rows alone are not cached.
        """
        settings, module = self.recipe.settings, self.loaded.module
        if settings.train.checkpointing:
            checkpoint_layers(module)
        states = self.states(run, parts, rows) if alone else None
        online = self.online_references(parts)
        return tuned_policy(module, parts, TunerInputs(settings.seed, rows), self.policy, online, states)

    def layout(self, policy: Any, parts: Parts, *readers: str) -> Layout:
        """How the rows of a batch are laid out; `readers` read whole rows, besides the parts."""
        return "padded"

    @property
    def pad_id(self) -> int:
        """The token id at padded positions."""
        return 0

    def micro(self) -> int:
        """Positions per forward (of arrays: records), as the recipe says; auto: by the device."""
        micro = self.recipe.settings.train.batch.micro
        return MICRO_RECORDS[self.device.type] if micro == "auto" else micro

    def estimate(self, module: nn.Module, rows: Sequence[Row], frozen: int) -> int | None:
        """The predicted peak memory of training in bytes, or None where no prediction exists for the modality.

        Args:
            frozen: bytes of frozen copies of the model, such as references.
        """
        return None

    def refuse_unfit(self, parts: Parts) -> None:
        """Hook: raise LuthierError for parts that cannot learn from these data."""
        return

    def refuse_unscorable(self, sets: Sequence[str]) -> None:
        """Hook: raise LuthierError for sets whose evaluation after training would fail, before training starts."""
        return

    @abstractmethod
    def score(self, module: nn.Module, name: str, journal: Journal) -> Evaluation | None:
        """Evaluate a module on the records of a set (target, retain, validation); None if the set has no records."""

    def shown(self, module: nn.Module, sets: Sequence[str], journal: Journal) -> dict[str, Any]:
        """Hook: further numbers for the report, on which no comparison is decided."""
        return {}

    def read_back(self, folder: Path, module: nn.Module) -> dict[str, Any] | None:
        """Hook: compare the model saved in `folder` with `module`; facts for run.json, or None where nothing is read.

        Raises:
            RunError: what was saved is not the module.
        """
        return None

    @abstractmethod
    def save_assets(self, folder: Path) -> None:
        """Write the files besides the weights, such as a tokenizer, into the folder of a saved model."""


def find_device() -> torch.device:
    """A GPU if the machine has any (under torchrun the process's own), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def compute_dtype(recipe: Recipe, device: torch.device) -> str:
    """The type that the model computes in: `train.precision`, else `model.dtype`, else bfloat16 where it is fast."""
    settings = recipe.settings
    for dtype in (settings.train.precision, settings.model.dtype):
        if dtype != "auto":
            return dtype
    return "bfloat16" if fast_bfloat16(device) else "float32"


def micro_tokens(recipe: Recipe, module: nn.Module, device: torch.device) -> int:
    """Positions per forward of a language model: `train.batch.micro`; auto: by the device and the model's size."""
    micro = recipe.settings.train.batch.micro
    if micro != "auto":
        return micro
    large = device.type == "cpu" and sum(p.numel() for p in module.parameters()) >= LARGE
    return MICRO_TOKENS_OF_LARGE if large else MICRO_TOKENS[device.type]
