"""Retention: which right answers of the base model a trained model keeps. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luthier.evals.base import EvaluationError, Item


@dataclass(frozen=True)
class Retention:
    """Right answers of the base model and of a trained model on the same items.

    An item is right if its score reaches its metric's `RIGHT` (1, or 0.5 for chrf and token_f1).

    Attributes:
        kept: of the items that the base has right, the share that the trained model has right; None if there are none.
        base_right: number of items that the base has right.
        net_change: share right after training minus share right before, in points (-100 to 100).
        reason: why `kept` is None.
    """

    kept: float | None
    base_right: int
    net_change: float
    n: int
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def retention(base: Sequence[Item], after: Sequence[Item]) -> Retention:
    """Compare the base's and a trained model's answers to the same items.

    Raises:
        EvaluationError: no items, or items that only one of the two models has answered.
    """
    right_before = {item.id: item.right for item in base}
    right_after = {item.id: item.right for item in after}
    if right_before.keys() != right_after.keys() or not right_before:
        odd = sorted(right_before.keys() ^ right_after.keys())
        fault = f"record {odd[0]} and {len(odd) - 1} others are in only one of the two" if odd else "there are none"
        raise EvaluationError(
            f"Retention compares the same items of base and trained model, but {fault}.",
            "Evaluate both on the same `retain` set.",
        )
    total, known = len(right_before), [name for name, right in right_before.items() if right]
    change = 100 * (sum(right_after.values()) - len(known)) / total
    if not known:
        return Retention(None, 0, change, total, "the base has no item right, so there is nothing to keep")
    return Retention(sum(right_after[name] for name in known) / len(known), len(known), change, total)
