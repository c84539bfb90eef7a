"""MaxLoss: keep the candidates with the highest loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.parts import lazy
from luthier.select.base import Pool, Selector

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.select import _values as measured
    from luthier.types import Batch
else:
    torch = lazy("torch")
    measured = lazy("luthier.select._values")


class MaxLoss(Selector):
    """Candidates with the highest mean loss per target. Wrong labels have a high loss too.

    score = -(1/N) Σ_t log p(y_t) over a record's N targets. With `pressure` s, candidates are drawn without
    replacement: of n, the candidate of rank i (0: highest loss) with probability proportional to s^(-i/n), so that
    the first is about s times as likely as the last.

    Source: arXiv 1511.06343 (online batch selection).
    """

    PAPER: ClassVar[str] = "arXiv 1511.06343"
    SETTINGS: ClassVar = ({}, {"keep": 0.25}, {"pool": 3}, {"warmup": 2}, {"pressure": 2.0})

    pressure: float | None = Field(
        None,
        gt=1.0,
        description="Ratio s of the chances of the first and the last in a draw by rank of loss. Larger follows the "
        "loss more closely; null keeps the highest, without a draw.",
    )

    def features(self, policy: Any, batch: Batch, state: Any) -> dict[str, Tensor]:
        return {"loss": measured.loss_by_row(policy, batch)}

    def scores(self, pool: Pool) -> Tensor:
        loss = pool.features["loss"]
        return loss if self.pressure is None else drawn_by_rank(loss, pool.uniform, self.pressure)


def drawn_by_rank(values: Tensor, uniform: Tensor, pressure: float) -> Tensor:
    """Scores [n] whose top k are a draw of k without replacement, by the rank of `values` (Gumbel top-k).

    Source: arXiv 1903.06059 for the Gumbel trick.
    """
    rank = torch.argsort(torch.argsort(values, descending=True, stable=True))
    log_chance = -torch.log(torch.tensor(pressure, dtype=torch.float64)) * rank / len(values)
    return log_chance - torch.log(-torch.log(uniform.clamp(min=1e-300)))  # uniform may be 0
