"""DPO: raise the likelihood of the chosen answer over the rejected one, relative to the initial model."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.objectives.preference.base import PairObjective, PairView
from luthier.parts import lazy

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.objectives.preference import _margins as margins
else:
    margins = lazy("luthier.objectives.preference._margins")


class DPO(PairObjective):
    """Direct preference optimisation: a logistic loss of the difference of two log-ratios.

    loss = -log σ(β h), h = (log p - log q)(chosen) - (log p - log q)(rejected), summed over the answers' tokens,
    with p the policy and q the model before training, whose numbers are computed once. With ε = label_smoothing,
    sigmoid: -(1 - ε) log σ(β h) - ε log σ(-β h) (conservative DPO);
    robust: [-(1 - ε) log σ(β h) + ε log σ(-β h)] / (1 - 2ε), unbiased when a share ε of the labels is flipped;
    hinge: max(0, 1 - β h). Meters: `margin`, β h; `accuracy`, the share of pairs with h > 0, a tie counting half.

    Source: arXiv 2305.18290, equation 7; smoothing: its authors' note of 2023; robust: arXiv 2403.00409;
    hinge: arXiv 2305.10425.
    """

    PAPER: ClassVar[str] = "arXiv 2305.18290"
    READS: ClassVar = ("logprobs:initial",)
    SETTINGS: ClassVar = (
        {},
        {"beta": 0.5},
        {"loss": "hinge"},
        {"label_smoothing": 0.2},
        {"loss": "robust", "label_smoothing": 0.2},
    )

    beta: float = Field(
        0.1,
        gt=0.0,
        description="Factor β of the log-ratios to the initial model. Smaller lets the policy move further from it; "
        "TRL has 0.1.",
    )
    loss: Literal["sigmoid", "robust", "hinge"] = Field(
        "sigmoid",
        description="`sigmoid` is the paper's; `hinge` is max(0, 1 - βh) (arXiv 2305.10425); `robust` is unbiased "
        "where a share `label_smoothing` of the pairs is flipped (arXiv 2403.00409).",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0.0,
        lt=0.5,
        description="Share ε of pairs thought to be the wrong way round. Above 0, `sigmoid` stops pushing at a finite "
        "margin; `robust` needs it, `hinge` refuses it.",
    )

    @model_validator(mode="after")
    def _smoothing_is_read(self) -> DPO:
        if self.loss == "robust" and self.label_smoothing == 0:
            raise ValueError("`loss: robust` needs `label_smoothing` above 0; without it, it is `sigmoid`")
        if self.loss == "hinge" and self.label_smoothing > 0:
            raise ValueError("`loss: hinge` has no `label_smoothing`; remove it, or choose `sigmoid` or `robust`")
        return self

    def pair_loss(self, view: PairView) -> Tensor:
        margin = self.beta * margins.log_ratio_difference(view)
        margins.report(view, margin)
        if self.loss == "hinge":
            return margins.hinge(margin)
        logistic = margins.robust if self.loss == "robust" else margins.smoothed
        return logistic(margin, self.label_smoothing)
