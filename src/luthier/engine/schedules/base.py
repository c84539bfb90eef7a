"""The family of schedules: what the learning rate is multiplied by as training goes on."""

from __future__ import annotations

from typing import ClassVar

from luthier.errors import RecipeError
from luthier.parts import Part


class Schedule(Part):
    """A factor of the learning rate. Verb: `factor`; it is a function of progress alone and keeps nothing."""

    SLOT: ClassVar[str] = "schedule"

    def factor(self, progress: float) -> float:
        """Factor, from 0 to 1, at `progress` in [0,1]: the middle of the update's share of the budget."""
        raise RecipeError(f"{type(self).__name__} does not define `factor(self, progress)`.")
