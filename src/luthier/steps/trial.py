"""One update of a recipe's own training on a few of its records, so that parts that do not fit are found by `check`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from luthier.data.prepare import Prepared
from luthier.data.render import Renderer
from luthier.engine import estimate
from luthier.errors import LuthierError, RunError
from luthier.modalities.base import find_device
from luthier.modalities.language.workspace import LanguageWorkspace
from luthier.models.loading.load import Loaded
from luthier.recipe import Recipe, load_recipe
from luthier.runs.run import Run
from luthier.steps.train import training

RECORDS = 4
LARGEST = {"cpu": 500_000_000, "cuda": 4_000_000_000}
"""Parameters up to which a model is loaded for a trial: a larger one takes minutes."""


@dataclass(frozen=True)
class TriedUpdate:
    """An update that was tried, or why none was.

    Attributes:
        parts: objective, tuner and selector by name.
        records: number of the shortest records that it learned from; 0 if none was tried.
        loss: of the update.
        left_out: why the model was not tried; empty if it was.
    """

    parts: str
    records: int
    loss: float | None
    left_out: str


def try_update(
    recipe: Recipe, prepared: Prepared, renderer: Renderer, loaded: Loaded | None, empty: nn.Module, peak: int
) -> TriedUpdate:
    """Train one update on the shortest records, in a folder that is removed.

    Args:
        loaded: the model, which the update changes; None: too large to be tried.
        empty: the architecture without weights.
        peak: estimated peak memory of the whole training, in bytes.

    Raises:
        LuthierError: the objective, the tuner or the selector does not work on this model and these records.
    """
    names, device = _names(recipe), find_device()
    parameters = sum(parameter.numel() for parameter in empty.parameters())
    # The peak of a training counts the weights, which have their memory already.
    held = 0 if loaded is None else estimate.weight_bytes(loaded.module)
    if loaded is None or parameters > LARGEST[device.type] or peak - held > _free(device):
        return TriedUpdate(names, 0, None, f"{parameters / 1e6:,.0f} M parameters; `--probe` tries them on the model")
    lock = recipe.to_lock()
    short = load_recipe({**lock, "recipe": {**lock["recipe"], "budget": {"updates": 1}}})
    events: list[dict[str, Any]] = []
    few = _shortest(prepared, min(RECORDS, recipe.settings.train.batch.records))
    try:
        with tempfile.TemporaryDirectory() as folder:
            workspace = LanguageWorkspace(short, device, loaded, few, renderer)
            trainer, _ = training(Run(short, Path(folder)), workspace, events.append, lambda: False)
            trainer.train()
    except LuthierError:
        raise
    except Exception as error:  # a model's own code may raise anything
        reason = f"{type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}"
        raise RunError(
            f"One update with {names} fails on this model: {reason}",
            "`luthier --debug check` shows where.",
        ) from error
    losses = [event["loss"] for event in events if event["event"] == "update"]
    return TriedUpdate(names, len(few.splits["train"]), losses[0] if losses else None, "")


def _names(recipe: Recipe) -> str:
    """`sft with lora`, with the selector if there is one."""
    train = recipe.settings.train
    tuners = train.tuner if isinstance(train.tuner, list) else [train.tuner]
    objectives = train.objective if isinstance(train.objective, list) else [train.objective]
    kinds = [spec.get("kind") or spec.get("objective", {}).get("kind", "") for spec in objectives]
    selector = "" if train.select is None else f" and {train.select['kind']}"
    return f"{' + '.join(kinds)} with {' + '.join(spec['kind'] for spec in tuners)}{selector}"


def _shortest(prepared: Prepared, count: int) -> Prepared:
    """The training records with the fewest tokens, and no others."""
    length: dict[str, int] = {}
    for row in prepared.train:
        length[row.record] = length.get(row.record, 0) + len(row)
    chosen = sorted(length, key=lambda record: (length[record], record))[:count]
    kept = set(chosen)
    rows = [row for row in prepared.train if row.record in kept]
    records = {name: prepared.records[name] for name in chosen}
    return replace(
        prepared,
        train=rows,
        validation=[],
        test=[],
        records=records,
        splits={"train": chosen, "validation": [], "test": []},
    )


def _free(device: torch.device) -> int:
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available
