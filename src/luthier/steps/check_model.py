"""The model of a recipe, tried on the recipe's rows as at the start of a run."""

from __future__ import annotations

from dataclasses import dataclass

import psutil

from luthier.data.prepare import Prepared
from luthier.data.render import Renderer
from luthier.engine.assemble import Parts
from luthier.modalities.base import compute_dtype, find_device
from luthier.modalities.language.workspace import LanguageWorkspace
from luthier.models.loading.load import Loaded, folded, load_model, resolve_model
from luthier.models.policy import TokenPolicy
from luthier.recipe import Recipe
from luthier.steps.train import compared_with, dropout_notes, made_ready, router_loss

FREE_SHARE = 0.5
"""Share of the free memory that the files of the weights may have, for the model to be loaded by a check."""


@dataclass(frozen=True)
class ModelTrial:
    """Sentences on how the model reads the recipe's rows, or on why it was not tried."""

    lines: tuple[str, ...]


def try_model(recipe: Recipe, prepared: Prepared, renderer: Renderer) -> tuple[ModelTrial, Loaded | None]:
    """Load the model and try it on the recipe's rows: its head, that it sees no later token, and the layout.

    Steps make rows and models of their own: in a recipe of several the model is tried alone. The loaded model is
    returned as it was; None where it is too large for the free memory.

    Raises:
        LuthierError: the run would be refused.
    """
    settings, device = recipe.settings, find_device()
    needed, free = _file_bytes(recipe), psutil.virtual_memory().available
    if needed > FREE_SHARE * free:
        words = f"not tried: its weights have {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        return ModelTrial((words,)), None
    model = settings.model.model_copy(update={"dtype": compute_dtype(recipe, device)})
    loaded = folded(load_model(model, recipe.base, device))
    workspace = LanguageWorkspace(recipe, device, loaded, prepared, renderer)
    workspace.verify()
    name = type(loaded.module).__name__
    if settings.steps is not None:
        return ModelTrial((f"{name} sees no later token",)), loaded
    parts, policy = Parts.of(recipe), TokenPolicy(loaded.module)
    changed = made_ready(parts.tuners, loaded.module)
    compared = compared_with(parts, settings.rl is not None)
    router, notes = router_loss(policy, prepared.train, compared)
    layout = workspace.layout(policy, parts, *(part.kind for part in router))
    lines = (
        f"{name} sees no later token; rows are laid out as `{layout}`",
        *changed,
        *dropout_notes(policy, compared),
        *notes,
    )
    return ModelTrial(lines), loaded


def _file_bytes(recipe: Recipe) -> int:
    """Bytes of the model's weights on disk; 0 for one that is still on the hub."""
    source = resolve_model(recipe.settings.model.path, recipe.base)
    return 0 if isinstance(source, str) else sum(file.stat().st_size for file in source.glob("*.safetensors"))
