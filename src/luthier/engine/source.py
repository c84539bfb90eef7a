"""Sources of an update's rows: records in data order, or anything else that can be drawn and resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from luthier.data.batches import Ordered
from luthier.engine.assemble import Parts
from luthier.engine.budget import Budget, Position
from luthier.recipe import Recipe
from luthier.types import Row


@dataclass(frozen=True)
class Drawn:
    """The rows of one update, and what drawing them has cost.

    Attributes:
        rows: candidates for training; a selector may keep some of them.
        records: number of records (or prompts) of the data that they use up.
        facts: further numbers to report with the update.
        generated: number of tokens sampled for them.
        unspent: the part of the records drawn last that later updates still train on: of a rollout that gives four
            updates, 3/4 of its prompts with the first, none with the last.
        skipped_tokens: tokens of rows that are left out because they would not move the model.
    """

    rows: Sequence[Row]
    records: int
    facts: Mapping[str, float] = field(default_factory=dict)
    generated: int = 0
    unspent: float = 0.0
    skipped_tokens: int = 0


class RowSource(Protocol):
    """The rows of each update, as a function of the position and of a state that checkpoints carry."""

    budget: Budget

    def __len__(self) -> int:
        """Records of one epoch."""
        ...

    def draw(self, position: Position, records: int) -> Drawn | None:
        """The next update's rows, of `records` records or prompts if the budget allows; None when it is spent.

        An update without rows is skipped, and counted.
        """
        ...

    def updates_left(self, position: Position, records: int) -> int | None:
        """Updates that remain, or None for a budget of seconds."""
        ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a resumed run needs besides the position: tensors, and a mapping for JSON."""
        ...

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        ...


class Records:
    """The records of a data set, ordered by (seed, epoch, record id) or as written; the position is all its state."""

    def __init__(self, rows: Sequence[Row], seed: int, budget: Budget, shuffled: bool = True):
        self.ordered = Ordered(rows, seed, shuffled)
        self.budget = budget

    @classmethod
    def of(cls, recipe: Recipe, parts: Parts, rows: Sequence[Row]) -> Records:
        """The records of a recipe's training, in its order and within its budget."""
        settings = recipe.settings
        return cls(rows, settings.seed, parts.budget(recipe), settings.train.batch.order == "shuffled")

    def __len__(self) -> int:
        return len(self.ordered)

    def draw(self, position: Position, records: int) -> Drawn | None:
        rows_by_record = self.budget.draw(self.ordered, position, records)
        if not rows_by_record:
            return None
        return Drawn([row for record_rows in rows_by_record for row in record_rows], len(rows_by_record))

    def updates_left(self, position: Position, records: int) -> int | None:
        return self.budget.updates(self.ordered, position, records)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {}

    def load(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        pass
