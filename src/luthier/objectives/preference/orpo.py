"""ORPO: the nll of the chosen answer plus a log-odds-ratio loss against the rejected one; no reference model."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from luthier.objectives.preference.base import PairObjective, PairView
from luthier.parts import lazy
from luthier.types import Term

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.objectives.preference import _margins as margins
else:
    margins = lazy("luthier.objectives.preference._margins")


class ORPO(PairObjective):
    """Odds ratio preference optimisation: supervised fine-tuning and preference in one loss.

    loss = nll(chosen) + weight · -log σ(log odds(chosen) - log odds(rejected)), odds = P / (1 - P) with P the
    geometric mean of an answer's token probabilities. nll is divided by the update's number of chosen targets,
    the odds term by its number of pairs. Meters: `margin`, the difference of the log odds; `accuracy`.

    Source: arXiv 2403.07691, equations 6 and 7. The released code includes the prompt's tokens in nll; Luthier only
    the answer's, as in sft.
    """

    PAPER: ClassVar[str] = "arXiv 2403.07691"
    SETTINGS: ClassVar = ({}, {"weight": 1.0})

    weight: float = Field(
        0.1,
        ge=0.0,
        description="Weight λ of the odds-ratio term. Larger pushes harder against rejected answers; 0 is sft on the "
        "chosen ones. The authors' scripts have 0.1.",
    )

    def pair_loss(self, view: PairView) -> Tensor:
        margin = margins.log_odds(view.chosen.mean) - margins.log_odds(view.rejected.mean)
        margins.report(view, margin)
        return self.weight * margins.smoothed(margin, 0.0)

    def terms_of(self, view: PairView) -> list[Term]:
        return [Term(-view.chosen.logprob.sum(), "chosen_targets"), *super().terms_of(view)]
