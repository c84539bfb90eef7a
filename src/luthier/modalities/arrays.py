"""What steps stand on where records are arrays and not text."""

from __future__ import annotations

from luthier.data.batches import limited
from luthier.modalities.base import Workspace
from luthier.types import Row

SETS = {"target": "test", "validation": "validation"}
PICTURES = 40
"""Items of a set that keep their pictures."""


class ArrayGround(Workspace):
    """A workspace whose rows have no tokens: their arrays are row streams."""

    def held_out(self, name: str) -> list[Row]:
        """The rows of a set, at most `evaluate.limit`, in the order of their names."""
        rows = [] if name not in SETS else getattr(self.prepared, SETS[name])
        kept = limited(rows, self.recipe.settings.evaluate.limit, lambda row: row.id)
        return sorted(kept, key=lambda row: row.id)
