"""The base class of generated data sets of arrays: pictures and other tensors that a program draws."""

from __future__ import annotations

from typing import ClassVar

from luthier.errors import RecipeError
from luthier.parts import Part
from luthier.types import Row


class ArrayDataset(Part):
    """Rows of arrays made from options and a seed: the same options give the same rows everywhere. Verb: `rows`."""

    SLOT: ClassVar[str] = "dataset"

    def rows(self) -> list[Row]:
        """All rows, in order: each has an id of its own and no tokens, and each of its arrays is a row stream."""
        raise RecipeError(f"{type(self).__name__} does not define `rows(self)`.")
