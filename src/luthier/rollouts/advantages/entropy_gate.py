"""Prefix-RFT: of the demonstration's tokens, only the most uncertain are learned."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy
from numpy import ndarray
from pydantic import Field

from luthier.rollouts.base import Advantage, Arrays, Rollout


class EntropyGate(Advantage):
    """Sets A = 0 on the int(n · drop) forced tokens of lowest entropy, of the n trained forced tokens of the rollout.

    Sampled tokens are untouched, and gated ones stay in what the loss is divided by. `over: answer` gates within each
    answer; `first: high` drops the most certain last instead (a control). Equal entropies are settled by order.

    Source: arXiv 2507.01679, section 4; the released code gates within each micro-batch, so that the result depends
    on their size. Here the gate is over the rollout, which is the update where one update follows a rollout.
    """

    PAPER: ClassVar[str] = "arXiv 2507.01679"
    READS: ClassVar = ("entropy",)
    TAKES: ClassVar = "advantages"
    SETTINGS: ClassVar = ({}, {"drop": 0.5}, {"first": "high"}, {"over": "answer"})

    drop: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Share of the trained prefix tokens whose advantage becomes 0. Larger learns fewer tokens of the "
        "gold answer; the paper has 0.8.",
    )
    first: Literal["low", "high"] = Field(
        "low",
        description="Which prefix tokens are dropped first: those of `low` entropy, so that uncertain ones are learned"
        " (the paper's), or of `high` (a control).",
    )
    over: Literal["rollout", "answer"] = Field(
        "rollout",
        description="What the share is taken of: all prefix tokens of the `rollout`, or those of each `answer`. The "
        "released code takes each micro-batch.",
    )

    def compute(self, rollout: Rollout, values: Arrays) -> Arrays:
        prefixes = [forced & trained for forced, trained in zip(rollout.forced, rollout.trained, strict=True)]
        inside = [entropy[prefix] for entropy, prefix in zip(rollout.columns["entropy"], prefixes, strict=True)]
        if self.over == "answer":
            kept = [self._kept(one) for one in inside]
        else:
            ends = numpy.cumsum([len(one) for one in inside])
            kept = numpy.split(self._kept(numpy.concatenate([numpy.zeros(0), *inside])), ends[:-1])
        made = [value.copy() for value in values]
        for value, prefix, keep in zip(made, prefixes, kept, strict=True):
            value[prefix] *= keep
        return made

    def _kept(self, entropies: ndarray) -> ndarray:
        """1 for tokens that keep their advantage, 0 for others."""
        order = numpy.argsort(entropies if self.first == "low" else -entropies, kind="stable")
        keep = numpy.ones(len(entropies))
        keep[order[: int(len(entropies) * self.drop + 1e-9)]] = 0.0
        return keep
