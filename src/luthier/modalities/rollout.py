"""What rollouts share whatever the model: prompts, a budget, and rows in an order that the seed decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luthier.data.batches import data_order
from luthier.engine.budget import Budget
from luthier.types import Row


class RolloutSource:
    """Base of the row sources of `rl` steps: samples are drawn, judged and trained on, again and again.

    An epoch is one pass over the prompts, so `len` counts these.
    """

    def __init__(self, prompts: Sequence[Any], seed: int, budget: Budget):
        self.prompts = list(prompts)
        self.seed = seed
        self.budget = budget

    def __len__(self) -> int:
        return len(self.prompts)

    def shuffled(self, rows: Sequence[Row], number: int) -> list[Row]:
        """The rows in the order keyed by (seed, number, row id): a resumed run finds the same order."""
        order = data_order([row.id for row in rows], self.seed, number)
        return [rows[index] for index in order]
