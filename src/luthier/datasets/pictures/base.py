"""The family of data sets of arrays: pictures and other tensors that are drawn by a program."""

from __future__ import annotations

from typing import ClassVar

from luthier.errors import RecipeError
from luthier.parts import Part
from luthier.types import Row


class ArrayDataset(Part):
    """Rows of arrays made from options and a seed; the same options give the same rows everywhere. Verb: `rows`."""

    SLOT: ClassVar[str] = "dataset"

    def rows(self) -> list[Row]:
        """All rows, in order, each with an id of its own; arrays are row streams."""
        raise RecipeError(f"{type(self).__name__} does not define `rows(self)`.")
