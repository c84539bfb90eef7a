"""IPO: a squared loss that pulls the difference of two log-ratios to a finite value."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.objectives.preference.base import PairObjective, PairView
from luthier.parts import lazy

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.objectives.preference import _margins as margins
else:
    margins = lazy("luthier.objectives.preference._margins")


class IPO(PairObjective):
    """Identity preference optimisation: a squared loss with its minimum at a finite margin.

    loss = (h - 1/(2β))², h = r(chosen) - r(rejected), r = Σ_t (log p - log q) for `log_ratio: summed` (the
    paper's equation) or its mean over the answer's tokens for `averaged`, which does not favour short answers.
    p is the policy and q the model before training. Meters: `margin`, h; `accuracy`.

    Source: arXiv 2310.12036, equation 17.
    """

    PAPER: ClassVar[str] = "arXiv 2310.12036"
    READS: ClassVar = ("logprobs:initial",)
    SETTINGS: ClassVar = ({}, {"beta": 0.5}, {"log_ratio": "summed"})

    beta: float = Field(
        0.1,
        gt=0.0,
        description="Strength β of the tie to the initial model: the margin asked for is 1/(2β) nats, 5 at the "
        "default. Smaller asks for a larger margin.",
    )
    log_ratio: Literal["averaged", "summed"] = Field(
        "averaged",
        description="`averaged` takes log-ratios per token, as TRL does and the authors advise; `summed` over the "
        "whole answer, as the paper's equation.",
    )

    def pair_loss(self, view: PairView) -> Tensor:
        chosen, rejected = view.chosen.log_ratio(), view.rejected.log_ratio()
        if self.log_ratio == "averaged":
            chosen, rejected = chosen / view.chosen.count, rejected / view.rejected.count
        margins.report(view, chosen - rejected)
        return (chosen - rejected - 1 / (2 * self.beta)) ** 2
