"""RLOO: REINFORCE on whole answers, with the mean reward of the prompt's other answers as the baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.objectives.base import TokenObjective
from luthier.objectives.views import TokenView
from luthier.parts import lazy

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.objectives.policy_gradient import _surrogate as surrogates
    from luthier.types import Row
else:
    surrogates = lazy("luthier.objectives.policy_gradient._surrogate")


class RLOO(TokenObjective):
    """REINFORCE leave-one-out: the answer is one action, its probability the product over its tokens.

    loss_i = -min(ρ_i A_i, clip(ρ_i, 1 - clip_low, 1 + clip_high) A_i) with ρ_i = exp Σ_t (log π - log π_old),
    averaged over answers. Each of an answer's n tokens gets loss_i / n with n times the gradient of its own log π,
    which sums to the gradient of loss_i. Without `old_logprobs` (one update per rollout) this is REINFORCE.

    The rollout subtracts the leave-one-out baseline (advantage `leave_one_out`) and adds the KL penalty, which is
    part of the reward. Meters: `ratio`, `clip_fraction`.

    Source: arXiv 2402.14740; clipping as in trl, for several updates per rollout.
    """

    PAPER: ClassVar[str] = "arXiv 2402.14740"
    READS: ClassVar = ("advantages", "old_logprobs")
    UNIT: ClassVar[str] = "records"
    DETACHED: ClassVar = ("ratio of the answer",)
    SETTINGS: ClassVar = ({}, {"clip_low": 0.9}, {"clip_high": 9.0})

    clip_low: float = Field(
        0.2,
        gt=0.0,
        description="How far below 1 the ratio of a whole answer may fall before its gradient ends. Idle with one "
        "update per rollout; long answers reach it soon.",
    )
    clip_high: float = Field(
        0.2,
        gt=0.0,
        description="How far above 1 the ratio of a whole answer may rise before its gradient ends. Idle with one "
        "update per rollout; long answers reach it soon.",
    )

    def has_gradient(self, row: Row) -> bool:
        return not row.silent("advantages")

    def token_loss(self, view: TokenView) -> Tensor:
        advantages, count = view.stream("advantages"), view.record_targets
        old, total = view.streams.get("old_logprobs"), None
        if old is not None:
            total = count * view.record_mean(lambda batch: batch.logprob - batch.streams["old_logprobs"])
            old = count * old
        # n · log π gives the token n times its gradient; divided by n below, the tokens sum to the answer's gradient.
        rho = surrogates.ratio(count * view.logprob, old, total)
        view.meter("ratio", rho)
        view.meter("clip_fraction", surrogates.is_clipped(rho, advantages, self.clip_low, self.clip_high))
        return surrogates.clipped(rho, advantages, self.clip_low, self.clip_high) / count
