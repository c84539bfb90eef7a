"""From a recipe to its workspace: the table of modalities."""

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
"""Modality, as objectives name it → workspace. `recipe/modality.py` says which keys of a recipe each one takes."""


def open_workspace(recipe: Recipe, cache: Path | None, say: Callable[[str], None] = lambda text: None) -> Workspace:
    """Load the model and prepare the data of a recipe.

    Args:
        cache: folder in which prepared data are kept, or None.
        say: takes one line about each stage of the work.

    Raises:
        LuthierError: the model or the data cannot be used.
    """
    tune_allocator()  # oneDNN reads its settings at the first matrix product
    device = find_device()
    workspace_class = WORKSPACES[modality_of(recipe.settings.model, recipe.base)]
    return workspace_class.open(recipe, device, compute_dtype(recipe, device), cache, say)
