"""The base class of record shapes: several judged answers to one prompt, each of which becomes a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.errors import RecipeError
from luthier.parts import Part
from luthier.types import Record, Stream


class RecordShape(Part):
    """A shape of records with several answers. Verb: `sides`; hooks: `read`, `streams`.

    A record that has all COLUMNS has the shape. An objective reads all answers if its NEEDS name FORM, or the shape;
    every other objective learns the first side alone, which is the good answer.
    """

    SLOT: ClassVar[str] = "shape"
    COLUMNS: ClassVar[tuple[str, ...]] = ()
    FORM: ClassVar[str] = ""

    def read(self, fields: Mapping[str, Any], origin: str) -> dict[str, Any]:
        """Hook: the checked columns of a record; raises a DataError that names `origin` if it cannot read them."""
        return dict(fields)

    def sides(self, record: Record) -> tuple[tuple[str, Record], ...]:
        """For each answer a name of its own and a record with that answer alone; the good one comes first."""
        raise RecipeError(f"{type(self).__name__} does not define `sides(self, record)`.")

    def streams(self, record: Record) -> tuple[Mapping[str, Stream], ...]:
        """Hook: row streams of each side, besides `preferred` (1 for the first, 0 for the others), which all have."""
        return tuple({} for _ in self.sides(record))
