"""The recipe's grammar: reading, merging, checking and locking. It describes and never runs."""

from luthier.recipe.load import load_recipe
from luthier.recipe.methods import Method, find_method, list_methods, method_label
from luthier.recipe.resolve import Recipe
from luthier.recipe.settings import Settings
from luthier.recipe.stages import Stage, flat, stages_of

__all__ = [
    "Method",
    "Recipe",
    "Settings",
    "Stage",
    "find_method",
    "flat",
    "list_methods",
    "load_recipe",
    "method_label",
    "stages_of",
]
