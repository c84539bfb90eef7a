"""Luthier: compare ways of fine-tuning a model, on your model, your data, one budget.

Importing it loads nothing heavy: each public name comes from its room when first used.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

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

_HOMES = {
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
    if name not in _HOMES:
        raise AttributeError(f"module 'luthier' has no attribute {name!r}")
    from luthier.parts import lazy

    return getattr(lazy(_HOMES[name]), _RENAMED.get(name, name))


class _Room(ModuleType):
    """The room `luthier.compare`, which is also the public function of that name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.compare(*arguments, **options)


class _Package(ModuleType):
    """Makes `luthier.compare` both the room and the function, whichever is imported first."""

    @property
    def compare(self) -> ModuleType:
        import luthier.compare  # noqa: F401 - loads the room

        room = sys.modules["luthier.compare"]
        room.__class__ = _Room
        return room

    @compare.setter
    def compare(self, room: ModuleType) -> None:
        """The import system binds a room to its package; the property answers instead."""


sys.modules[__name__].__class__ = _Package
