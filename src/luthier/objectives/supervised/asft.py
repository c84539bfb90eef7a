"""ASFT: dft, anchored to the initial model by a KL divergence per token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.objectives.base import TokenObjective
from luthier.objectives.views import TokenView
from luthier.parts import lazy

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.objectives import _divergence as divergence
else:
    divergence = lazy("luthier.objectives._divergence")


class ASFT(TokenObjective):
    """Anchored supervised fine-tuning: the dft loss plus a pull towards the model training started from.

    loss_t = -sg[p(y_t)^prob_power] log p(y_t) + kl_weight · KL_t over the whole vocabulary, sg: no gradient, with
    forward: KL(reference || policy) = Σ_v q_v (log q_v - log p_v); reverse: KL(policy || reference).
    The reference is the model at the start of this training (`initial`), in eval mode, never updated.
    kl_weight 0 is dft. The paper's text and the released trainer both use the forward direction.

    Source: arXiv 2509.23753. The released code divides by each micro-batch's own token count; Luthier divides by the
    update's, so gradient accumulation does not change the gradient.
    """

    PAPER: ClassVar[str] = "arXiv 2509.23753"
    READS: ClassVar = ("logits:initial",)
    DETACHED: ClassVar = ("weight",)
    SETTINGS: ClassVar = ({}, {"kl_weight": 0.5}, {"kl_weight": 0.5, "kl_direction": "reverse"}, {"prob_power": 0.0})

    kl_weight: float = Field(
        0.05,
        ge=0.0,
        description="Weight λ of the divergence from the initial model. Larger keeps more of it and learns less; 0 is "
        "dft. 0.05 is the paper's, the authors' scripts have 0.03 to 0.1.",
    )
    kl_direction: Literal["forward", "reverse"] = Field(
        "forward",
        description="`forward` is KL(initial ‖ policy), as in the paper and its code: the policy keeps what the "
        "initial model holds possible. `reverse` is KL(policy ‖ initial).",
    )
    prob_power: float = Field(
        1.0,
        ge=0.0,
        description="Exponent k of the token's probability in its weight. 1 is dft's weight; 0 weighs all tokens "
        "alike, which is sft with the same anchor.",
    )

    def token_loss(self, view: TokenView) -> Tensor:
        weight = (self.prob_power * view.logprob.detach()).exp()
        reference = view.logits_of("initial")
        if self.kl_direction == "forward":
            distance = divergence.kl_from_reference(view.logits, reference)
        else:
            distance = divergence.kl_to_reference(view.logits, reference)
        view.meter("mean_weight", weight)
        view.meter("kl", distance)
        return -weight * view.logprob + self.kl_weight * distance
