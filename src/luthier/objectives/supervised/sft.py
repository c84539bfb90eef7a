"""SFT: cross-entropy on the target tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.objectives.base import TokenObjective
from luthier.objectives.views import TokenView

if TYPE_CHECKING:
    from torch import Tensor


class SFT(TokenObjective):
    """Supervised fine-tuning: mean cross-entropy over the target tokens.

    loss_t = -log p(y_t), divided by the number of targets of the whole update, over all micro-batches
    and ranks.
    """

    def token_loss(self, view: TokenView) -> Tensor:
        return -view.logprob
