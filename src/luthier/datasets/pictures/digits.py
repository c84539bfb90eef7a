"""Pictures of digits with their class, for models of every modality that reads pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy
from pydantic import Field

from luthier.datasets.pictures.base import ArrayDataset
from luthier.types import Row, Stream
from luthier.vision.digits import CLASSES, digit_rows

FIRST_WORD = 2
"""Token id of the word "zero": ids 0 and 1 begin and end a caption, as in the vocabularies of text encoders."""


class Digits(ArrayDataset):
    """Digits of 8×8 pixels in [-1, 1] with their class in every form that a model may read.

    Arrays: `image` [1,8,8], `label`, `caption` [3] (token ids: begin, the digit's word, end), and, in place of cached
    prompt embeddings, the one-hot vectors `text` [1,classes] and `pooled` [classes].
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
        description="Seed of the drawing: each seed gives its own pictures, the same on every machine.",
    )
    classes: int = Field(
        CLASSES,
        ge=2,
        le=CLASSES,
        description="Number of different digits drawn, from 0 on. Fewer are easier to tell apart.",
    )

    def rows(self) -> list[Row]:
        """All digits, one class after the other in turn; a smaller count gives the first of a larger one."""
        return [self._with_conditions(row) for row in digit_rows(self.count, self.seed, self.classes)]

    def _with_conditions(self, row: Row) -> Row:
        label = int(row.streams["label"].values)
        one_hot = numpy.zeros(self.classes, dtype=numpy.float32)
        one_hot[label] = 1.0
        conditions = {
            "caption": Stream(numpy.array([0, FIRST_WORD + label, 1]), "row"),
            "text": Stream(one_hot[None], "row"),
            "pooled": Stream(one_hot, "row"),
        }
        return replace(row, streams={**row.streams, **conditions})
