"""From a recipe to its ground: the table of what steps stand on for each kind of model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from luthier.engine import memory
from luthier.recipe import Recipe
from luthier.recipe.kinds import kind_of
from luthier.steps.denoisers import DenoiserGround
from luthier.steps.encoders import EncoderGround
from luthier.steps.ground import Ground, compute_dtype, find_device
from luthier.steps.language import LanguageGround

GROUNDS: Mapping[str, type[LanguageGround | DenoiserGround | EncoderGround]] = {
    "token": LanguageGround,
    "denoiser": DenoiserGround,
    "encoder": EncoderGround,
}
"""By the face that objectives name; `recipe/kinds.py` has what a recipe may say of each."""


def stand(recipe: Recipe, cache: Path | None, say: Callable[[str], None] = lambda text: None) -> Ground:
    """Load the model and prepare the data of a recipe."""
    memory.keep_freed()
    device = find_device()
    made = GROUNDS[kind_of(recipe.settings.model, recipe.base)]
    return made.stand(recipe, device, compute_dtype(recipe, device), cache, say)
