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
"""Records per forward where they are no sequences of tokens: small ones on a processor, cached latents on a GPU."""
MICRO_TOKENS = {"cpu": 512, "cuda": 16384}
"""Positions per forward when `micro` is auto. On a CPU 512 is as fast as 4096 and takes 1 GB less (bench/micro.py)."""
LARGE, MICRO_TOKENS_OF_LARGE = 50_000_000, 256
"""On a CPU a model of so many parameters takes half of that: 0.4 GiB less for SmolLM2-135M. Small ones slow down."""


@dataclass(frozen=True)
class Workspace(ABC):
    """A recipe's model and data, ready to train and evaluate: the one thing that differs between kinds of models.

    `COUNTS` is what the length of a row counts; `WEIGHTS` the folder of the weights within that of a saved model;
    `WHOLE` says that a model is always saved with its tuning folded in.
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
        """What objectives see of a module."""

    def rows(self, run: Run, parts: Parts) -> list[Row]:
        """The training rows with all that these parts read."""
        return self.prepared.train

    def source(self, parts: Parts, rows: list[Row], policy: Any, layout: Layout, log: Log) -> RowSource:
        """Where the rows of each update come from."""
        shuffled = self.recipe.settings.train.batch.order == "shuffled"
        return Records(rows, self.recipe.settings.seed, parts.budget(self.recipe), shuffled)

    def states(self, run: Run, parts: Parts, rows: Sequence[Row]) -> HiddenStateCache | None:
        """Hidden states of the initial model at the rows, where they are computed once rather than at every update."""
        return None

    def online_references(self, parts: Parts) -> Collection[str]:
        """References that are asked again and again, besides those that the objective names."""
        return ()

    def tune(self, run: Run, parts: Parts, rows: list[Row], alone: bool) -> Any:
        """The policy to train: the parts put onto the model. `alone`: no later training carries this one on."""
        settings, module = self.recipe.settings, self.loaded.module
        if settings.train.checkpointing:
            checkpoint_layers(module)
        states = self.states(run, parts, rows) if alone else None  # else other rows will be asked of the reference too
        online = self.online_references(parts)
        return tuned_policy(module, parts, TunerInputs(settings.seed, rows), self.policy, online, states)

    def layout(self, policy: Any, parts: Parts) -> Layout:
        """How the rows of a batch are laid out."""
        return "padded"

    @property
    def pad_id(self) -> int:
        """The token that padding is made of."""
        return 0

    def micro(self) -> int:
        """Positions per forward."""
        micro = self.recipe.settings.train.batch.micro
        return MICRO_RECORDS[self.device.type] if micro == "auto" else micro

    def estimate(self, module: nn.Module, rows: Sequence[Row], frozen: int) -> int | None:
        """The predicted peak of training in bytes, or None where nothing can be said."""
        return None

    def refuse_unfit(self, parts: Parts) -> None:
        """Raise LuthierError for parts that cannot learn from these data."""
        return

    def refuse_unscorable(self, sets: Sequence[str]) -> None:
        """Raise LuthierError for what could not be evaluated after training, such as a set that is not there."""
        return

    @abstractmethod
    def score(self, module: nn.Module, name: str, journal: Journal) -> Evaluation | None:
        """A module on the records of a set (target, retain, validation); None where there are none."""

    def shown(self, module: nn.Module, sets: Sequence[str], journal: Journal) -> dict[str, Any]:
        """Further numbers, which decide nothing."""
        return {}

    @abstractmethod
    def save_assets(self, folder: Path) -> None:
        """Write into a saved model's folder what belongs to it besides its weights."""


def find_device() -> torch.device:
    """A GPU when there is one (this process's own under torchrun), else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def compute_dtype(recipe: Recipe, device: torch.device) -> str:
    """The type the model computes in: `train.precision`, else `model.dtype`, else bf16 where that is fast."""
    settings = recipe.settings
    for wanted in (settings.train.precision, settings.model.dtype):
        if wanted != "auto":
            return wanted
    return "bfloat16" if fast_bfloat16(device) else "float32"


def micro_tokens(recipe: Recipe, module: nn.Module, device: torch.device) -> int:
    """Positions per forward."""
    micro = recipe.settings.train.batch.micro
    if micro != "auto":
        return micro
    large = device.type == "cpu" and sum(p.numel() for p in module.parameters()) >= LARGE
    return MICRO_TOKENS_OF_LARGE if large else MICRO_TOKENS[device.type]
