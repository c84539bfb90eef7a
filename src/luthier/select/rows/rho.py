"""RHO-Loss: what is still to learn, and can be learned."""

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

    A wrong label is unlikely under the reference too, so its difference is small; what is known already has a
    small loss to begin with. Both losses are means over a record's targets; the reference's is computed once
    for the data set (column `logprobs:<reference>`).

    Source: arXiv 2206.07137, eq. 3.
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

    def look(self, policy: Any, batch: Batch, state: Any) -> dict[str, Tensor]:
        known = measured.mean_by_record(-batch.at_targets(f"logprobs:{self.reference}"), batch)
        return {"reducible": measured.loss_by_record(policy, batch) - known}

    def scores(self, pool: Pool) -> Tensor:
        return pool.features["reducible"]
