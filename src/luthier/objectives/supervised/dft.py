"""DFT: cross-entropy weighted by the model's own probability of the token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.objectives.base import TokenObjective
from luthier.objectives.views import TokenView

if TYPE_CHECKING:
    from torch import Tensor


class DFT(TokenObjective):
    """Dynamic fine-tuning: tokens the model finds unlikely are pulled less.

    loss_t = -sg[p(y_t)^prob_power] log p(y_t), sg: no gradient through the weight. `prob_power` 1 is the
    paper's method, 0 is sft. Meter: `mean_weight`. The loss cannot be compared with a cross-entropy: compare `nll`,
    which every run reports.

    Source: arXiv 2508.05629, equation 9.
    """

    PAPER: ClassVar[str] = "arXiv 2508.05629"
    DETACHED: ClassVar = ("weight",)
    SETTINGS: ClassVar = ({}, {"prob_power": 0.5})

    prob_power: float = Field(
        1.0,
        ge=0.0,
        description="Exponent k of the token's probability in its weight. 1 is the paper's method, 0 is sft; larger "
        "learns less from unlikely tokens.",
    )

    def token_loss(self, view: TokenView) -> Tensor:
        weight = (self.prob_power * view.logprob.detach()).exp()
        view.meter("mean_weight", weight)
        return -weight * view.logprob
