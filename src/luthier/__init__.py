"""Luthier: compare ways of fine-tuning a model, on your model, your data, one budget.

Importing it loads nothing heavy: each public name is imported from its package when it is first used.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from luthier.threads import limit_spinning

if TYPE_CHECKING:
    from luthier.compare import compare
    from luthier.errors import LuthierError
    from luthier.evals.base import Metric
    from luthier.objectives.base import CoupledObjective, Objective, SequenceObjective, TokenObjective
    from luthier.objectives.preference.base import PairObjective
    from luthier.parts import Part
    from luthier.recipe import Recipe, load_recipe
    from luthier.steps.run import run_recipe as run
    from luthier.tuners.base import Tuner

__version__ = "0.1.0"

limit_spinning()  # before anything below imports torch

_MODULES = {
    "CoupledObjective": "luthier.objectives.base",
    "LuthierError": "luthier.errors",
    "Metric": "luthier.evals.base",
    "Objective": "luthier.objectives.base",
    "PairObjective": "luthier.objectives.preference.base",
    "Part": "luthier.parts",
    "Recipe": "luthier.recipe",
    "SequenceObjective": "luthier.objectives.base",
    "TokenObjective": "luthier.objectives.base",
    "Tuner": "luthier.tuners.base",
    "load_recipe": "luthier.recipe",
    "run": "luthier.steps",
}
_RENAMED = {"run": "run_recipe"}
__all__ = [
    "CoupledObjective",
    "LuthierError",
    "Metric",
    "Objective",
    "PairObjective",
    "Part",
    "Recipe",
    "SequenceObjective",
    "TokenObjective",
    "Tuner",
    "__version__",
    "compare",
    "load_recipe",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    from luthier.parts import lazy

    return getattr(lazy(_MODULES[name]), _RENAMED.get(name, name))


class _CallablePackage(ModuleType):
    """The package `luthier.compare`, which is also the public function of that name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.compare(*arguments, **options)


class _Package(ModuleType):
    """Makes `luthier.compare` both the package and the function, whichever is imported first."""

    @property
    def compare(self) -> ModuleType:
        import luthier.compare  # noqa: F401 - loads the package

        package = sys.modules["luthier.compare"]
        package.__class__ = _CallablePackage
        return package

    @compare.setter
    def compare(self, package: ModuleType) -> None:
        """Do nothing: the import system sets a package on its parent, and the property would be lost."""


sys.modules[__name__].__class__ = _Package
