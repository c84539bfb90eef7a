"""RHO-Loss: keep candidates whose loss a model trained on held-out data has reduced."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.parts import lazy
from luthier.select.base import Pool, Selector

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.select import _values as measured
    from luthier.types import Batch
else:
    measured = lazy("luthier.select._values")


class Rho(Selector):
    """Candidates with the highest reducible loss: the model's loss minus that of a reference trained on held-out data.

    score = L(model) - L(reference), each the mean of -log p over the record's targets. A wrong label is unlikely under
    the reference too, so its difference is small; a record that the model knows has a small loss already. The
    reference's losses are computed once for the data set (column `logprobs:<reference>`).

    Source: arXiv 2206.07137, equation 3.
    """

    PAPER: ClassVar[str] = "arXiv 2206.07137"
    SETTINGS: ClassVar = (
        {"reference": "held-out"},
        {"reference": "held-out", "keep": 0.25},
        {"reference": "held-out", "pool": 3},
        {"reference": "held-out", "warmup": 2},
        {"reference": "another"},
    )

    reference: str = Field(
        description="Model trained on data of the same kind that is not trained on here: a name, a folder or a run "
        "folder. Its tokens must be those of the trained model.",
    )

    def reads(self) -> tuple[str, ...]:
        return (f"logprobs:{self.reference}",)

    def features(self, policy: Any, batch: Batch, state: Any) -> dict[str, Tensor]:
        irreducible = measured.mean_by_row(-batch.at_targets(f"logprobs:{self.reference}"), batch)
        return {"reducible": measured.loss_by_row(policy, batch) - irreducible}

    def scores(self, pool: Pool) -> Tensor:
        return pool.features["reducible"]
