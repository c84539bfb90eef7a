"""Phase 2 of an update: a selector looks at the candidates, pool by pool, and some of them go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.engine.micro_batches import MicroBatches
from luthier.errors import RecipeError, RunError
from luthier.models.policy import Policy, reading
from luthier.select.base import Pool, Selector, keyed_uniform
from luthier.types import Row

Features = list[dict[str, Tensor]]
"""Of each row, in the order of the rows: name → value [...] on the CPU."""


@dataclass(frozen=True)
class Kept:
    """What goes on to training, in data order, and what was looked at for it."""

    rows: Sequence[Row]
    looked_rows: int = 0
    looked_tokens: int = 0


@dataclass
class Selection:
    """The selector of one training with what it remembers; without one every row goes on.

    Attributes:
        state: what the selector's `start` returned.
    """

    selector: Selector | None
    state: Any
    policy: Policy
    micro_batches: MicroBatches
    seed: int

    def keep(self, rows: Sequence[Row], update: int, observe: Callable[[dict[str, Any]], None]) -> Kept:
        """The candidates of an update (1, 2, ...) that are trained on. The selector's state moves on.

        `observe` is told which rows were kept.
        """
        selector = self.selector
        if selector is None or not rows or update <= selector.warmup:
            return Kept(rows)
        rows_by_record = group_drawn(rows)

        def attempt() -> Features:  # reads the state and changes nothing, so that it may be repeated
            return look(self.policy, selector, self.state, rows, self.micro_batches)

        features = self.micro_batches.within_memory(rows, update, attempt, observe)
        kept = choose(selector, self.state, rows_by_record, features, self.seed, update)
        observe({"event": "kept", "update": update, "records": [row.id for row in kept]})
        if not selector.FORWARD:
            return Kept(kept)
        return Kept(kept, len(rows), sum(len(row) for row in rows))

    def remembered(self) -> dict[str, Tensor]:
        """A copy of what the selector remembers, to go back to where an update does not come to pass."""
        return {} if self.state is None else {name: value.clone() for name, value in self.state.state_dict().items()}

    def undo(self, remembered: dict[str, Tensor]) -> None:
        """Go back to what `remembered` gave."""
        if remembered:
            self.state.load_state_dict(remembered)


def group_drawn(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that belong together, in the order drawn; a record drawn twice (where an epoch ends) is two candidates."""
    rows_by_record: list[list[Row]] = []
    for row in rows:
        last = rows_by_record[-1] if rows_by_record else []
        if last and last[0].record == row.record and all(other is not row for other in last):
            last.append(row)
        else:
            rows_by_record.append([row])
    return rows_by_record


def look(policy: Policy, selector: Selector, state: Any, rows: Sequence[Row], micro_batches: MicroBatches) -> Features:
    """The selector's features of every row; each rank looks at its share, and all ranks get all of them."""
    if not selector.FORWARD:
        return [{} for _ in rows]
    place = {id(row): index for index, row in enumerate(rows)}
    device = next(policy.module.parameters()).device
    found: list[tuple[int, dict[str, Tensor]]] = []
    with reading(policy.module):
        for micro in micro_batches.cut(rows, "padded"):
            batch = micro_batches.collate(micro, "padded").to(device)
            features = {name: values.cpu() for name, values in selector.features(policy, batch, state).items()}
            for index, row in enumerate(micro):
                found.append((place[id(row)], {name: values[index] for name, values in features.items()}))
    by_place = dict(pair for theirs in micro_batches.world.gather(found) for pair in theirs)
    return [by_place[place[id(row)]] for row in rows]


def choose(
    selector: Selector, state: Any, rows_by_record: Sequence[Sequence[Row]], features: Features, seed: int, update: int
) -> list[Row]:
    """The rows to train on, in data order: of each pool, those that the selector keeps.

    Args:
        rows_by_record: rows that stay together, in data order.
        features: of their rows, in the same order.

    Raises:
        RunError: nothing was kept, or a score is no finite number; names records.
        RecipeError: the selector returned scores of another shape.
    """
    values = iter(features)
    means = [_mean([next(values) for _ in record_rows]) for record_rows in rows_by_record]
    kept: list[Row] = []
    for start in range(0, len(rows_by_record), selector.pool):
        members, known = rows_by_record[start : start + selector.pool], means[start : start + selector.pool]
        names = tuple(record_rows[0].record for record_rows in members)
        stacked = {name: torch.stack([one[name] for one in known]) for name in known[0]}
        pool = Pool(names, stacked, keyed_uniform(seed, update, names), state)
        indices = selector.chosen(_checked(selector, selector.scores(pool), pool, update))
        selector.commit(pool.only(indices))
        kept += [row for index in indices for row in members[index]]
    if not kept:
        shown = ", ".join(record_rows[0].record for record_rows in rows_by_record[:4])
        raise RunError(
            f"The selector `{selector.kind}` kept none of the {len(rows_by_record)} candidates of update {update}"
            f" (records {shown}, ...).",
            "Lower what it asks for, or train without it (train.select=null).",
        )
    return kept


def _mean(features: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Features of a record: those of its only row, or their mean."""
    if len(features) == 1:
        return features[0]
    return {name: torch.stack([one[name] for one in features]).mean(0) for name in features[0]}


def _checked(selector: Selector, scores: Tensor, pool: Pool, update: int) -> Tensor:
    if scores.shape != (len(pool.names),):
        raise RecipeError(
            f"{type(selector).__name__}.scores returned {tuple(scores.shape)}; expected one value per candidate,"
            f" ({len(pool.names)},)."
        )
    broken = [name for name, score in zip(pool.names, scores.tolist(), strict=True) if score - score != 0]
    if broken:
        raise RunError(
            f"The selector `{selector.kind}` has no finite score for {', '.join(broken[:16])} (update {update}).",
            "Look at these records, or lower train.optimizer.lr: the model's own values may have overflown.",
        )
    return scores
