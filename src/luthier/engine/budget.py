"""The budget of a run, in exactly one unit, and the position that a run has reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from luthier.data.batches import Ordered, RecordRows, group_by_record
from luthier.errors import RunError
from luthier.types import Row

Unit = Literal["epochs", "records", "tokens", "updates", "seconds"]


@dataclass
class Position:
    """What a run has used so far; it travels with checkpoints.

    Attributes:
        records: drawn from the data, chosen by a selector or not.
        tokens: went through a backward pass.
        seconds: spent in updates.
        looked_rows, looked_tokens: read by selectors and probes without gradient, which is cost.
        generated_tokens: sampled for rollouts, which is cost.
        unspent_records: the part of the drawn records whose updates are still to come.
        skipped_tokens: of rows without anything to learn from, which a budget of tokens counts: it would never end.
    """

    updates: int = 0
    records: int = 0
    tokens: int = 0
    targets: int = 0
    seconds: float = 0.0
    looked_rows: int = 0
    looked_tokens: int = 0
    generated_tokens: int = 0
    unspent_records: float = 0.0
    skipped_tokens: int = 0

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """`amount` of `unit`. The tokens of all rows of a record count every time that it is trained on.

    A budget of seconds depends on the machine and cannot be repeated bit for bit.

    Attributes:
        kept: the share of drawn records that a selector will train on; a budget of tokens draws more accordingly.
    """

    unit: Unit
    amount: float
    kept: float = 1.0

    @property
    def repeatable(self) -> bool:
        return self.unit != "seconds"

    def epochs(self, rows: Sequence[Row], records: int) -> float | None:
        """How often each of these rows is trained on, in the mean; None for a budget of seconds."""
        if self.unit == "seconds":
            return None
        if self.unit == "tokens":
            return self.amount / sum(map(len, rows))
        epoch = len(group_by_record(rows))  # records of one pass
        drawn = {"epochs": epoch, "records": 1, "updates": records}[self.unit]
        return self.kept * self.amount * drawn / epoch

    def spent(self, position: Position, rows: int) -> float:
        """The part of the budget used up, 0 to 1.

        Records count as their updates are done: the schedule of several updates per rollout moves on with each.
        """
        if self.unit == "tokens":
            used = _tokens(position)
        elif self.unit in ("epochs", "records"):
            records = position.records - position.unspent_records
            used = records / rows if self.unit == "epochs" else records
        else:
            used = getattr(position, self.unit)
        return min(1.0, used / self.amount)

    def draw(self, ordered: Ordered, position: Position, records: int) -> list[RecordRows]:
        """The next update's records: `records` of them, fewer where the budget ends, none when it is spent.

        Raises:
            RunError: there is no record, or the budget is less than one record.
        """
        if len(ordered) == 0:
            raise RunError("There is no record to train on.")
        if self.unit in ("updates", "seconds"):
            records = 0 if self.spent(position, len(ordered)) >= 1.0 else records
        elif self.unit in ("epochs", "records"):
            total = round(self.amount * len(ordered)) if self.unit == "epochs" else int(self.amount)
            if total == 0:
                raise RunError(
                    f"A budget of {self.amount} epochs of {len(ordered)} records is less than one record.",
                    "Raise `budget.epochs`.",
                )
            records = min(records, total - position.records)
        rows_by_record = [ordered.at(position.records + i) for i in range(max(0, records))]
        if self.unit != "tokens":
            return rows_by_record
        # Whole records, since rows of a record stay together: the last may exceed the budget.
        kept, used = [], _tokens(position)
        for record_rows in rows_by_record:
            if used >= self.amount:
                break
            kept.append(record_rows)
            used += sum(len(row) for row in record_rows) * self.kept
        return kept

    def updates(self, ordered: Ordered, position: Position, records: int) -> int | None:
        """Updates that remain, or None for a budget of seconds; for one of tokens an estimate from the mean length."""
        if self.unit == "seconds":
            return None
        if self.unit == "updates":
            return max(0, int(self.amount) - position.updates)
        if self.unit == "tokens":
            tokens = sum(sum(map(len, record_rows)) for record_rows in ordered.rows_by_record)
            mean = tokens / len(ordered)
            # Rounded up: a last update is needed for what remains.
            return max(0, round((self.amount - _tokens(position)) / (mean * self.kept * records) + 0.499))
        total = round(self.amount * len(ordered)) if self.unit == "epochs" else int(self.amount)
        return max(0, -(-(total - position.records) // records))


def _tokens(position: Position) -> int:
    """Tokens that a budget of tokens counts: trained, or skipped because they would not move the model."""
    return position.tokens + position.skipped_tokens
