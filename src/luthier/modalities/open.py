"""From a recipe to its workspace: the table of what steps stand on for each kind of model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from luthier.engine.allocator import tune_allocator
from luthier.modalities.base import Workspace, compute_dtype, find_device
from luthier.modalities.contrastive.workspace import ContrastiveWorkspace
from luthier.modalities.diffusion.workspace import DiffusionWorkspace
from luthier.modalities.language.workspace import LanguageWorkspace
from luthier.recipe import Recipe
from luthier.recipe.modality import modality_of

WORKSPACES: Mapping[str, type[LanguageWorkspace | DiffusionWorkspace | ContrastiveWorkspace]] = {
    "language": LanguageWorkspace,
    "diffusion": DiffusionWorkspace,
    "contrastive": ContrastiveWorkspace,
}
"""By the modality that objectives name; `recipe/modality.py` has what a recipe may say of each."""


def open_workspace(recipe: Recipe, cache: Path | None, say: Callable[[str], None] = lambda text: None) -> Workspace:
    """Load the model and prepare the data of a recipe."""
    tune_allocator()
    device = find_device()
    made = WORKSPACES[modality_of(recipe.settings.model, recipe.base)]
    return made.open(recipe, device, compute_dtype(recipe, device), cache, say)
