"""Random: an equal share of every pool, drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from luthier.select.base import Pool, Selector

if TYPE_CHECKING:
    from torch import Tensor


class Random(Selector):
    """Candidates drawn at random: the control of every other selector at the same `keep`.

    The draw is a function of (seed, update, record id); no forward of the model is run.
    """

    FORWARD: ClassVar = False
    SETTINGS: ClassVar = ({}, {"keep": 0.25}, {"pool": 3}, {"warmup": 2})

    def scores(self, pool: Pool) -> Tensor:
        return pool.uniform
