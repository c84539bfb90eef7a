"""DiffusionNFT: reinforcement learning of a denoiser by flow matching towards good samples and away from bad ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.objectives.base import Objective
from luthier.parts import lazy
from luthier.types import Batch, Term
from luthier.update import Update

if TYPE_CHECKING:
    import torch

    from luthier.diffusion import levels
    from luthier.models import sets
    from luthier.objectives.diffusion import _draws as draws
    from luthier.objectives.diffusion import _nft as nft
else:
    torch = lazy("torch")
    levels = lazy("luthier.diffusion.levels")
    sets = lazy("luthier.models.sets")
    draws = lazy("luthier.objectives.diffusion._draws")
    nft = lazy("luthier.objectives.diffusion._nft")


class DiffusionNFT(Objective):
    """Forward-process reinforcement learning with implicit negatives.

    Row streams: `latent` (a clean sample drawn with the weights `old`), `level` σ, `optimality` r in [0,1]. With
    v± = v_old ± beta (v - v_old): loss = adv_clip/beta · (r ℓ₊ + (1-r) ℓ₋) + kl_weight · |v - v_initial|², where ℓ is
    the squared error of the clean sample over its mean absolute error (`normalise`), or, without it, the theorem's
    r |v₊ - (ε - x₀)|² + (1-r) |v₋ - (ε - x₀)|². The loss needs no likelihood and no stored path, so any solver may
    have drawn the samples. The weights `old` move after each rollout, `initial` never.
    Meters: `kl`, |v - v_initial|²; `from_old`, |v - v_old|².

    Source: arXiv 2509.16117 (theorem, loss and released code); adopted by arXiv 2510.16888.
    """

    PAPER: ClassVar[str] = "arXiv 2509.16117"
    MODALITY: ClassVar[str] = "diffusion"
    READS: ClassVar[tuple[str, ...]] = ("optimality",)
    UNIT: ClassVar[str] = "records"
    DETACHED: ClassVar = ("normaliser",)
    SETTINGS: ClassVar = ({}, {"beta": 0.1}, {"kl_weight": 0.5}, {"adv_clip": 2.0}, {"normalise": False})

    beta: float = Field(
        1.0,
        gt=0.0,
        description="Strength β of the implicit models v_old ± β(v - v_old). Smaller amplifies the step; the released "
        "configurations have 1.0 and 0.1.",
    )
    kl_weight: float = Field(
        1e-4,
        ge=0.0,
        description="Weight of the squared distance to the velocity that training began with. Larger stays nearer to "
        "it; the released code has 1e-4.",
    )
    adv_clip: float = Field(
        5.0,
        gt=0.0,
        description="Scale of the policy loss, which is multiplied by this over β. Larger weighs the reward more "
        "against `kl_weight`; the released code has 5.",
    )
    normalise: bool = Field(
        True,
        description="Whether errors are divided by their own mean size, as in the released code. False is the plain "
        "squared error of the theorem.",
    )

    def start(self, policy: Any) -> Any:
        """The weight sets `old` and `initial`, copies of the trained parameters; checkpoints hold them."""
        weight_sets = sets.Sets(policy.module, ("old", "initial"))
        policy.sets.update(weight_sets.sets)
        return weight_sets

    def terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        wide = torch.promote_types(next(policy.module.parameters()).dtype, torch.float32)
        clean, sigma, r = (batch.streams[name].values.to(wide) for name in ("latent", "level", "optimality"))
        # All three velocities are read at the same noised sample: the loss is a difference of velocities at one point.
        noise = draws.normal(update, batch.examples, 0, clean)
        x = levels.noised(clean, noise, sigma)
        condition, weight_sets = policy.condition(batch), update.state_of(self)
        with weight_sets["old"].using():
            old = policy.velocity(x, sigma, condition)
        with weight_sets["initial"].using():
            initial = policy.velocity(x, sigma, condition)
        trained = policy.velocity(x, sigma, condition)
        if self.normalise:
            loss = nft.practical(trained, old, x, clean, sigma, r, self.beta, self.adv_clip)
        else:
            loss = self.adv_clip / self.beta * nft.theoretical(trained, old, noise - clean, r, self.beta)
        kl = nft.distance(trained, initial)
        update.meter("kl", kl.detach().sum(), self.unit)
        update.meter("from_old", nft.distance(trained, old).detach().sum(), self.unit)
        return [Term(loss.sum(), self.unit), Term(kl.sum(), self.unit, self.kl_weight)]
