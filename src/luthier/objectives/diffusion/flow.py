"""Flow: learn the velocity field that transports noise to data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.objectives.base import Objective
from luthier.parts import lazy
from luthier.types import Batch, Term
from luthier.update import Update

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.diffusion import levels
    from luthier.objectives.diffusion import _draws as draws
else:
    torch = lazy("torch")
    levels = lazy("luthier.diffusion.levels")
    draws = lazy("luthier.objectives.diffusion._draws")


class Flow(Objective):
    """Flow matching on clean samples x₀ (row stream `latent`): mean over dimensions of |v(x, σ, c) - (ε - x₀)|².

    x = (1-σ) x₀ + σ ε, c the row streams `condition:<name>`. ε and σ are functions of (seed, update, row, draw).
    Meter: `flow`, the loss.

    Source: arXiv 2210.02747, on the straight path of arXiv 2209.03003; logit-normal levels arXiv 2403.03206.
    """

    PAPER: ClassVar[str] = "arXiv 2210.02747"
    MODALITY: ClassVar[str] = "diffusion"
    UNIT: ClassVar[str] = "records"
    SETTINGS: ClassVar = ({}, {"level": "logit_normal"}, {"draws": 2})

    level: Literal["uniform", "logit_normal"] = Field(
        "uniform",
        description="How noise levels σ are drawn: `uniform` on [0, 1], or `logit_normal`, the logistic of a normal "
        "number, more in the middle (arXiv 2403.03206).",
    )
    draws: int = Field(
        1,
        ge=1,
        description="Noises and levels per record and update. More steadies the gradient and costs a forward and a "
        "backward each.",
    )

    def terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        clean = batch.streams["latent"].values
        clean = clean.to(torch.promote_types(next(policy.module.parameters()).dtype, torch.float32))
        losses = [self._loss(policy, batch, update, clean, draw) for draw in range(self.draws)]
        total = torch.stack(losses).sum() / self.draws
        update.meter("flow", total.detach(), self.unit)
        return [Term(total, self.unit)]

    def _loss(self, policy: Any, batch: Batch, update: Update, clean: Tensor, draw: int) -> Tensor:
        # Even draws are noises and odd ones levels, so that the two are independent.
        noise = draws.normal(update, batch.examples, 2 * draw, clean)
        sigma = self._levels(update, batch, 2 * draw + 1, clean)
        x = levels.noised(clean, noise, sigma)
        error = policy.velocity(x, sigma, policy.condition(batch)) - (noise - clean)
        return error.square().flatten(1).mean(1).sum()

    def _levels(self, update: Update, batch: Batch, draw: int, clean: Tensor) -> Tensor:
        if self.level == "uniform":
            return draws.uniform(update, batch.examples, draw, 1, clean.device)[:, 0].to(clean.dtype)
        return draws.normal(update, batch.examples, draw, clean.flatten(1)[:, :1])[:, 0].sigmoid()
