"""The family of shapes: records of several judged answers to one prompt, each of which becomes a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.errors import RecipeError
from luthier.parts import Part
from luthier.types import Record, Stream


class RecordShape(Part):
    """A shape of records with several answers. Verb: `sides`; hooks: `read`, `streams`.

    COLUMNS are the columns that tell the shape: a record that has them all has it. An objective reads such records if
    its NEEDS name FORM, or the shape; every other objective learns the first side alone, which is the good answer.
    """

    SLOT: ClassVar[str] = "shape"
    COLUMNS: ClassVar[tuple[str, ...]] = ()
    FORM: ClassVar[str] = ""

    def read(self, fields: Mapping[str, Any], origin: str) -> dict[str, Any]:
        """Hook: the record's columns, checked; raises DataError that names `origin` for one that cannot be read."""
        return dict(fields)

    def sides(self, record: Record) -> tuple[tuple[str, Record], ...]:
        """A name and a record of one answer for each answer, the good one first; the names differ."""
        raise RecipeError(f"{type(self).__name__} does not define `sides(self, record)`.")

    def streams(self, record: Record) -> tuple[Mapping[str, Stream], ...]:
        """Hook: row streams of each side; `preferred`, 1 for the first and 0 for the others, is there without."""
        return tuple({} for _ in self.sides(record))
