"""The recipe's grammar: reading, merging, checking and locking. It describes and never runs."""

from luthier.recipe.load import Recipe, load_recipe
from luthier.recipe.methods import Method, find_method, list_methods, method_label
from luthier.recipe.settings import Settings

__all__ = ["Method", "Recipe", "Settings", "find_method", "list_methods", "load_recipe", "method_label"]
