"""Digits of 8×8 pixels, drawn here."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy
from pydantic import Field

from luthier.datasets.pictures.base import ArrayDataset
from luthier.types import Row, Stream
from luthier.vision.digits import CLASSES, digit_rows

FIRST_WORD = 2  # 0 and 1 begin and end a caption, as in the vocabularies of text towers


class Digits(ArrayDataset):
    """Digits of 8×8 pixels in [-1, 1] with their class in every form that a model may be told it.

    Arrays: `image` [1,8,8], `label`, `caption` [3] (token ids: begin, the digit's word, end), and as cached prompt
    embeddings `text` [1,classes] and `pooled` [classes], which is 1 at the label.
    """

    SETTINGS: ClassVar = ({"count": 20}, {"count": 30}, {"count": 20, "seed": 1}, {"count": 20, "classes": 4})

    count: int = Field(
        1000,
        ge=1,
        description="Number of pictures, one class after the other in turn; a smaller number gives the first of a "
        "larger one.",
    )
    seed: int = Field(
        0,
        ge=0,
        description="Seed of the drawing: the same seed gives the same pictures everywhere, another one others.",
    )
    classes: int = Field(
        CLASSES,
        ge=2,
        le=CLASSES,
        description="Number of different digits drawn, from 0 on. Fewer are easier to tell apart.",
    )

    def rows(self) -> list[Row]:
        """All digits, class after class in turn; a smaller count gives the first of a larger one."""
        return [self._told(row) for row in digit_rows(self.count, self.seed, self.classes)]

    def _told(self, row: Row) -> Row:
        label = int(row.streams["label"].values)
        one = numpy.zeros(self.classes, dtype=numpy.float32)
        one[label] = 1.0
        forms = {"caption": numpy.array([0, FIRST_WORD + label, 1]), "text": one[None], "pooled": one}
        return replace(row, streams={**row.streams, **{name: Stream(v, "row") for name, v in forms.items()}})
