"""The budget: how far a run may go, in exactly one unit, and how far it has come."""

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
    """Where a run stands. `tokens` went through a backward pass; `seconds` were spent in updates.

    `records` were drawn; where a selector chose among them, it `looked` at so many rows and tokens, which is cost;
    so are the tokens `generated` for it.
    """

    updates: int = 0
    records: int = 0
    tokens: int = 0
    targets: int = 0
    seconds: float = 0.0
    looked_rows: int = 0
    looked_tokens: int = 0
    generated_tokens: int = 0

    def to_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """`amount` of `unit`; a record's tokens, of all its rows, count once per time it is trained on.

    `kept` is the share of drawn records that a selector will train on: a budget of tokens draws that many more.
    A budget of seconds depends on the machine and cannot be repeated bit for bit.
    """

    unit: Unit
    amount: float
    kept: float = 1.0

    @property
    def repeatable(self) -> bool:
        return self.unit != "seconds"

    def epochs(self, rows: Sequence[Row], records: int) -> float | None:
        """How often each of these rows is trained on, in the mean; None where only time will tell."""
        if self.unit == "seconds":
            return None
        if self.unit == "tokens":
            return self.amount / sum(map(len, rows))
        rows_by_record = len(group_by_record(rows))
        drawn = {"epochs": rows_by_record, "records": 1, "updates": records}[self.unit]
        return self.kept * self.amount * drawn / rows_by_record

    def spent(self, position: Position, rows: int) -> float:
        """The part of the budget used up, 0 to 1."""
        used = position.records / rows if self.unit == "epochs" else getattr(position, self.unit)
        return min(1.0, used / self.amount)

    def draw(self, ordered: Ordered, position: Position, records: int) -> list[RecordRows]:
        """The next update's records: as many as that, fewer where the budget ends, none when it is spent."""
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
        kept, used = [], position.tokens
        for record_rows in rows_by_record:
            if used >= self.amount:
                break
            kept.append(record_rows)
            used += sum(len(row) for row in record_rows) * self.kept
        return kept

    def updates(self, ordered: Ordered, position: Position, records: int) -> int | None:
        """Updates still to come, or None where only time will tell."""
        if self.unit == "seconds":
            return None
        if self.unit == "updates":
            return max(0, int(self.amount) - position.updates)
        if self.unit == "tokens":
            mean = sum(len(row) for record_rows in ordered.rows_by_record for row in record_rows) / len(ordered)
            return max(0, round((self.amount - position.tokens) / (mean * self.kept * records) + 0.499))
        total = round(self.amount * len(ordered)) if self.unit == "epochs" else int(self.amount)
        return max(0, -(-(total - position.records) // records))
