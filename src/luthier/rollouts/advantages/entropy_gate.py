"""Prefix-RFT: of the demonstration's tokens, only the most uncertain are learned."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy
from numpy import ndarray
from pydantic import Field

from luthier.rollouts.base import Advantage, Arrays, Rollout


class EntropyGate(Advantage):
    """Sets A = 0 on the int(n · drop) forced tokens of lowest entropy, of the n trained forced tokens of the rollout.

    Sampled tokens keep their advantage, and gated tokens still count in the loss's denominator. `over: answer` gates
    within each answer; `first: high` drops the tokens of highest entropy (a control). Of equal entropies, the earlier
    token is dropped first.

    Source: arXiv 2507.01679, section 4. The released code gates within each micro-batch, so its result depends on the
    micro-batch size. Here the gate spans the rollout, which is also the update if one update follows a rollout.
    """

    PAPER: ClassVar[str] = "arXiv 2507.01679"
    READS: ClassVar = ("entropy",)
    TAKES: ClassVar = "advantages"
    SETTINGS: ClassVar = ({}, {"drop": 0.5}, {"first": "high"}, {"over": "answer"})

    drop: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Share of the trained prefix tokens whose advantage becomes 0. Larger trains fewer tokens of the "
        "gold answer; the paper has 0.8.",
    )
    first: Literal["low", "high"] = Field(
        "low",
        description="Which prefix tokens are dropped first: those of `low` entropy, so that uncertain tokens are "
        "trained (the paper's), or those of `high` entropy (a control).",
    )
    over: Literal["rollout", "answer"] = Field(
        "rollout",
        description="The share counts all prefix tokens of the `rollout`, or those of each `answer`. The released code "
        "counts those of each micro-batch.",
    )

    def compute(self, rollout: Rollout, values: Arrays) -> Arrays:
        prefixes = [forced & trained for forced, trained in zip(rollout.forced, rollout.trained, strict=True)]
        entropies = [entropy[prefix] for entropy, prefix in zip(rollout.columns["entropy"], prefixes, strict=True)]
        if self.over == "answer":
            gates = [self._gate(of_answer) for of_answer in entropies]
        else:
            ends = numpy.cumsum([len(of_answer) for of_answer in entropies])
            # The empty array is for rollouts without answers, which cannot be concatenated.
            gates = numpy.split(self._gate(numpy.concatenate([numpy.zeros(0), *entropies])), ends[:-1])
        gated = [tokens.copy() for tokens in values]
        for tokens, prefix, gate in zip(gated, prefixes, gates, strict=True):
            tokens[prefix] *= gate
        return gated

    def _gate(self, entropies: ndarray) -> ndarray:
        """1 for tokens that keep their advantage, 0 for the others, [n] for entropies [n]."""
        order = numpy.argsort(entropies if self.first == "low" else -entropies, kind="stable")
        gate = numpy.ones(len(entropies))
        # 1e-9 against rounding: 50 · 0.58 is 28.999999999999996.
        gate[order[: int(len(entropies) * self.drop + 1e-9)]] = 0.0
        return gate
