"""SimPO: a preference loss of the mean log-probability per token; no reference model."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.objectives.preference.base import PairObjective, PairView
from luthier.parts import lazy

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.objectives.preference import _margins as margins
else:
    margins = lazy("luthier.objectives.preference._margins")


class SimPO(PairObjective):
    """Simple preference optimisation: the reward is what generation ranks by, and must win by a margin.

    loss = -log σ(β (avg(chosen) - avg(rejected)) - γ), avg the mean log p per token of an answer. Without a
    reference, only the learning rate keeps the policy near its start. Meters: `margin`, before γ; `accuracy`.

    Source: arXiv 2405.14734, equation 6.
    """

    PAPER: ClassVar[str] = "arXiv 2405.14734"
    SETTINGS: ClassVar = ({}, {"beta": 4.0}, {"gamma": 0.0})

    beta: float = Field(
        2.0,
        gt=0.0,
        description="Scale β of the difference in mean log-probability per token. Larger saturates at a smaller "
        "difference; the paper has 2 to 10.",
    )
    gamma: float = Field(
        1.0,
        ge=0.0,
        description="Margin γ that the chosen answer must win by, behind the scale β. Larger asks for a clearer win; "
        "the paper has about half of `beta`.",
    )

    def pair_loss(self, view: PairView) -> Tensor:
        margin = self.beta * (view.chosen.mean - view.rejected.mean)
        margins.report(view, margin)
        return margins.smoothed(margin - self.gamma, 0.0)
