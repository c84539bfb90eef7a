"""The base class of selectors, which choose the candidates of an update that are trained on."""

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
    """Candidates that compete: n consecutive records of an update, in data order.

    Attributes:
        names: id of each record.
        features: what the selector's `features` returned, {name: [n,...]} on the CPU; the mean over a record's rows.
        uniform: numbers [n] in [0,1), a function of (seed, update, record id) alone.
        state: the selector's state, from `start`.
    """

    names: tuple[str, ...]
    features: dict[str, Tensor]
    uniform: Tensor
    state: Any = None

    def only(self, indices: Sequence[int]) -> Pool:
        """The pool of the candidates with these indices, in this order."""
        index = torch.tensor(list(indices), dtype=torch.long)
        features = {name: values[index] for name, values in self.features.items()}
        return Pool(tuple(self.names[i] for i in indices), features, self.uniform[index], self.state)


RENAMED_HOOKS = {"look": "features"}


class Selector(Part):
    """Keeps some candidates of each pool. Method to write: `scores`.

    Hooks: `reads`, `start`, `features`, `chosen`, `commit`.

    An update's records are candidates. The engine cuts them into pools in data order, before it cuts micro-batches,
    so the choice does not depend on how an update is split over forwards or ranks. It calls `features` on
    micro-batches of candidates (eval mode, no gradient) and then `scores`, `chosen` and `commit` for each pool.

    FORWARD: False if the selector needs no forward of the model. Rows and tokens of that forward are reported as a
    cost (`looked_rows`, `looked_tokens`). READS: columns that the candidates must have.
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

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Refuse a hook under its old name, which nothing would call."""
        for old, new in RENAMED_HOOKS.items():
            if callable(vars(cls).get(old)):
                raise RecipeError(f"{cls.__name__} defines `{old}`, which is not called.", f"It is `{new}` now.")

    def reads(self) -> tuple[str, ...]:
        """Hook: the columns that candidates must have, such as `logprobs:initial`; READS, unless options choose."""
        return self.READS

    def start(self, policy: Any) -> Any:
        """Hook: mutable state, or None. The state needs `state_dict() -> {name: Tensor}` and `load_state_dict`."""
        return None

    def features(self, policy: Any, batch: Batch, state: Any) -> dict[str, Tensor]:
        """Hook: {name: [R,...]} of the R rows of one micro-batch, without gradient.

        `state` must not be changed here: the engine calls this again with smaller micro-batches if memory runs out.
        """
        return {}

    def scores(self, pool: Pool) -> Tensor:
        """Score [n] of each candidate; the highest are kept.

        Raises:
            RecipeError: the class does not define it.
        """
        raise RecipeError(f"{type(self).__name__} does not define `scores(self, pool)`.")

    def chosen(self, scores: Tensor) -> list[int]:
        """Hook: indices of the candidates to keep, ascending; of equal scores the first is kept."""
        count = max(1, int(self.keep * len(scores) + 0.5))  # rounds half up, where `round` rounds half to even
        return sorted(torch.argsort(scores, descending=True, stable=True)[:count].tolist())

    def commit(self, kept: Pool) -> None:
        """Hook: these candidates were kept; `kept.state` may be changed, and the next pool's scores read it."""


def keyed_uniform(seed: int, update: int, names: Sequence[str]) -> Tensor:
    """Numbers [n] in [0,1), float64: a hash of (seed, update, name), the same on every rank and under any split."""
    return torch.tensor([uniform53(seed, update, name) for name in names], dtype=torch.float64)
