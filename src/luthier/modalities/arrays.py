"""Workspaces whose records are arrays and not text."""

from __future__ import annotations

from luthier.data.batches import limited
from luthier.modalities.base import Workspace
from luthier.types import Row

SETS = {"target": "test", "validation": "validation"}
PICTURES = 40
"""Items of a set whose pictures are kept: the report shows no more, and each takes kilobytes in its file."""


class ArrayWorkspace(Workspace):
    """A workspace whose rows have no tokens: every array of a record is a row stream."""

    def held_out(self, name: str) -> list[Row]:
        """The rows of a set, at most `evaluate.limit`, in the order of their ids; an unknown set has none."""
        rows = [] if name not in SETS else getattr(self.prepared, SETS[name])
        kept = limited(rows, self.recipe.settings.evaluate.limit, lambda row: row.id)
        return sorted(kept, key=lambda row: row.id)
