"""Entropy: a bonus for staying undecided, to be added to a loss that learns something."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from luthier.objectives.base import TokenObjective
from luthier.objectives.views import TokenView
from luthier.parts import lazy

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.objectives import _divergence as divergence
else:
    divergence = lazy("luthier.objectives._divergence")


class Entropy(TokenObjective):
    """The entropy bonus of policy gradients; its coefficient in a sum is the field's entropy coefficient.

    loss_t = -H_t with H_t = -Σ_v p_v log p_v, over the whole vocabulary at the temperature of sampling, in nats;
    divided by the targets of the update. Answers without an advantage count too: their entropy does not depend on
    their reward. A negative coefficient lowers entropy. Meter: `entropy`.

    Sources: arXiv 1602.01783, equation 7; 1707.06347, equation 9; on written answers the confidence penalty of
    1701.06548.
    """

    PAPER: ClassVar[str] = "arXiv 1602.01783"
    READS_TARGETS: ClassVar[bool] = False

    def token_loss(self, view: TokenView) -> Tensor:
        entropies = divergence.entropy(view.logits)
        view.meter("entropy", entropies)
        return -entropies
