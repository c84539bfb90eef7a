"""The family of selectors: which candidates of an update are trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.errors import RecipeError
from luthier.keyed import uniform53
from luthier.parts import Part, lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.types import Batch
else:
    torch = lazy("torch")


@dataclass(frozen=True)
class Pool:
    """Candidates that compete: n consecutive rows_by_record of an update, in data order.

    Attributes:
        names: id of each record.
        features: what `look` found, [n,...] on the CPU; the mean over a record's rows.
        uniform: numbers [n] in [0,1), a function of (seed, update, record id) alone.
        state: what `start` returned.
    """

    names: tuple[str, ...]
    features: dict[str, Tensor]
    uniform: Tensor
    state: Any = None

    def only(self, indices: Sequence[int]) -> Pool:
        """The candidates at these places, in that order."""
        at = torch.tensor(list(indices), dtype=torch.long)
        features = {name: values[at] for name, values in self.features.items()}
        return Pool(tuple(self.names[i] for i in indices), features, self.uniform[at], self.state)


class Selector(Part):
    """Keeps some candidates of each pool. Verb: `scores`; hooks: `reads`, `start`, `look`, `chosen`, `commit`.

    An update's rows are candidates. Pools are cut from them in data order, before micro-batches are, so how
    an update is split over forward passes or ranks decides nothing. The engine calls `look` on micro-batches
    of candidates (eval mode, no gradient) and then, pool by pool, `scores`, `chosen` and `commit`.

    FORWARD says whether `look` needs the model; what is looked at is reported as cost.
    """

    SLOT: ClassVar[str] = "selector"
    FOLDER: ClassVar[str] = "rows"
    MODALITY: ClassVar[str] = "language"
    READS: ClassVar[tuple[str, ...]] = ()
    FORWARD: ClassVar[bool] = True

    keep: float = Field(
        0.5,
        gt=0.0,
        le=1.0,
        description="Share of each pool that is trained on, at least one candidate. Smaller saves backward passes; 1 "
        "is training without a selector.",
    )
    pool: int = Field(
        8,
        ge=1,
        description="Candidates that compete, consecutive in data order; the last pool of an update may be smaller. "
        "Larger gives more to choose from.",
    )
    warmup: int = Field(
        0,
        ge=0,
        description="Number of first updates that train on every candidate, before anything is left out.",
    )

    def reads(self) -> tuple[str, ...]:
        """Hook: the columns that candidates must carry, such as `logprobs:initial`."""
        return self.READS

    def start(self, policy: Any) -> Any:
        """Hook: mutable state, or None. It needs `state_dict() -> {name: Tensor}` and `load_state_dict`."""
        return None

    def look(self, policy: Any, batch: Batch, state: Any) -> dict[str, Tensor]:
        """Hook: values [R,...] of the R records of one micro-batch; gradients are off and `state` is only read."""
        return {}

    def scores(self, pool: Pool) -> Tensor:
        """Score [n] of each candidate; the highest are kept."""
        raise RecipeError(f"{type(self).__name__} does not define `scores(self, pool)`.")

    def chosen(self, scores: Tensor) -> list[int]:
        """Hook: places of the candidates to keep. The first of equals wins."""
        count = max(1, int(self.keep * len(scores) + 0.5))
        return sorted(torch.argsort(scores, descending=True, stable=True)[:count].tolist())

    def commit(self, kept: Pool) -> None:
        """Hook: these candidates were kept; remember in `kept.state` what the next pool should know."""


def keyed_uniform(seed: int, update: int, names: Sequence[str]) -> Tensor:
    """Numbers [n] in [0,1), float64: a hash of (seed, update, name), so that nothing but the key decides."""
    return torch.tensor([uniform53(seed, update, name) for name in names], dtype=torch.float64)
