"""The family of schedules: factors of the learning rate over the course of a training."""

from __future__ import annotations

from typing import ClassVar

from luthier.errors import RecipeError
from luthier.parts import Part


class Schedule(Part):
    """A factor of the learning rate. Verb: `factor`, a function of progress alone, without state."""

    SLOT: ClassVar[str] = "schedule"

    def factor(self, progress: float) -> float:
        """Factor, from 0 to 1, at `progress` in [0,1]: the middle of the update's share of the budget."""
        raise RecipeError(f"{type(self).__name__} does not define `factor(self, progress)`.")
