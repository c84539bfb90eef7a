"""Phase 2 of an update: a selector scores the candidates, pool by pool, and keeps some of them for training."""

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
"""One mapping per row, in the order of the rows: name → tensor [...] on the CPU."""


@dataclass(frozen=True)
class Kept:
    """The rows to train on, in data order, and how many candidates the model has read to choose them."""

    rows: Sequence[Row]
    scored_rows: int = 0
    scored_tokens: int = 0


@dataclass
class Selection:
    """The selector of one training with its state.

    Attributes:
        state: the return value of the selector's `start`.
    """

    selector: Selector
    state: Any
    policy: Policy
    micro_batches: MicroBatches
    seed: int

    def keep(self, rows: Sequence[Row], update: int, observe: Callable[[dict[str, Any]], None]) -> Kept:
        """The candidates of an update (1, 2, ...) that are trained on. The selector's state changes.

        Args:
            observe: receives an event with the ids of the kept rows.
        """
        selector = self.selector
        if not rows or update <= selector.warmup:
            return Kept(rows)
        rows_by_record = group_drawn(rows)
        features = self._features(rows, update, observe)
        kept = choose(selector, self.state, rows_by_record, features, self.seed, update)
        observe({"event": "kept", "update": update, "records": [row.id for row in kept]})
        if not selector.FORWARD:
            return Kept(kept)
        return Kept(kept, len(rows), sum(len(row) for row in rows))

    def _features(self, rows: Sequence[Row], update: int, observe: Callable[[dict[str, Any]], None]) -> Features:
        """The candidates' features; they change no state, so they are computed again where memory runs out."""
        while True:
            try:
                return candidate_features(self.policy, self.selector, self.state, rows, self.micro_batches)
            except (MemoryError, RuntimeError) as error:
                self.micro_batches.expect_out_of_memory(error, rows, update)
            self.micro_batches.halve(rows, update, observe)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the selector's state, for `restore` after an update that fails."""
        return {} if self.state is None else {name: kept.clone() for name, kept in self.state.state_dict().items()}

    def restore(self, snapshot: dict[str, Tensor]) -> None:
        """Return to the state of a `snapshot`."""
        if snapshot:
            self.state.load_state_dict(snapshot)


def group_drawn(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that belong together, in the order drawn; a record drawn twice (where an epoch ends) is two candidates."""
    rows_by_record: list[list[Row]] = []
    for row in rows:
        last = rows_by_record[-1] if rows_by_record else []
        # The very same row object again means that the record was drawn a second time.
        if last and last[0].record == row.record and all(other is not row for other in last):
            last.append(row)
        else:
            rows_by_record.append([row])
    return rows_by_record


def candidate_features(
    policy: Policy, selector: Selector, state: Any, rows: Sequence[Row], micro_batches: MicroBatches
) -> Features:
    """The selector's features of every row; each rank computes its share, and all ranks get all of them."""
    if not selector.FORWARD:
        return [{} for _ in rows]
    # By identity: a record that was drawn twice has two entries under the same id.
    index_of = {id(row): index for index, row in enumerate(rows)}
    device = next(policy.module.parameters()).device
    share: list[tuple[int, dict[str, Tensor]]] = []
    with reading(policy.module):
        # One by one, rows cannot share a prompt: padded, unless the model reads padded rows otherwise.
        layout = "even" if micro_batches.batching.layout == "even" else "padded"
        for micro in micro_batches.cut(rows, layout):
            batch = micro_batches.collate(micro, "padded").to(device)
            features = {name: tensor.cpu() for name, tensor in selector.features(policy, batch, state).items()}
            for position, row in enumerate(micro):
                row_features = {name: tensor[position] for name, tensor in features.items()}
                share.append((index_of[id(row)], row_features))
    by_index: dict[int, dict[str, Tensor]] = {}
    for rank_share in micro_batches.world.gather(share):
        by_index |= dict(rank_share)
    return [by_index[index_of[id(row)]] for row in rows]


def choose(
    selector: Selector, state: Any, rows_by_record: Sequence[Sequence[Row]], features: Features, seed: int, update: int
) -> list[Row]:
    """The rows to train on, in data order: of each pool, the rows that the selector keeps.

    Args:
        rows_by_record: rows that stay together, in data order.
        features: of all rows, in the same order.

    Raises:
        RunError: no candidate was kept, or a score is not finite; the message names records.
        RecipeError: the selector returned scores of another shape.
    """
    # A record competes as a whole: its features are the mean over its rows.
    remaining = iter(features)
    means = []
    for record_rows in rows_by_record:
        means.append(_mean([next(remaining) for _ in record_rows]))

    kept: list[Row] = []
    for start in range(0, len(rows_by_record), selector.pool):
        members, member_means = rows_by_record[start : start + selector.pool], means[start : start + selector.pool]
        names = tuple(record_rows[0].record for record_rows in members)
        stacked = {name: torch.stack([mean[name] for mean in member_means]) for name in member_means[0]}
        # Keyed by (seed, update, record), so that a resumed run and every rank draw the same numbers.
        pool = Pool(names, stacked, keyed_uniform(seed, update, names), state)
        indices = selector.chosen(_checked(selector, selector.scores(pool), pool, update))
        selector.commit(pool.only(indices))  # before the next pool, whose scores may depend on it
        kept += [row for index in indices for row in members[index]]
    if not kept:
        first_records = ", ".join(record_rows[0].record for record_rows in rows_by_record[:4])
        raise RunError(
            f"The selector `{selector.kind}` kept none of the {len(rows_by_record)} candidates of update {update}"
            f" (records {first_records}, ...).",
            "Loosen the selector's options, or train without it (train.select=null).",
        )
    return kept


def _mean(features: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Features of a record from those of its rows; a single row's keep their type, integers included."""
    if len(features) == 1:
        return features[0]
    return {name: torch.stack([row_features[name] for row_features in features]).mean(0) for name in features[0]}


def _checked(selector: Selector, scores: Tensor, pool: Pool, update: int) -> Tensor:
    if scores.shape != (len(pool.names),):
        raise RecipeError(
            f"{type(selector).__name__}.scores returned {tuple(scores.shape)}; expected one value per candidate,"
            f" ({len(pool.names)},)."
        )
    # x - x is 0 for finite numbers only.
    broken = [name for name, score in zip(pool.names, scores.tolist(), strict=True) if score - score != 0]
    if broken:
        raise RunError(
            f"The selector `{selector.kind}` has no finite score for {', '.join(broken[:16])} (update {update}).",
            "Check these records, or lower train.optimizer.lr: the model's own numbers may have overflown.",
        )
    return scores
