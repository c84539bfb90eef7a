"""What a model still knows after training. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luthier.evals.base import EvaluationError, Item


@dataclass(frozen=True)
class Retention:
    """Right answers before and after.

    `kept`: share of the items the base has right that are still right; None, with the `reason`, when
    the base has none right. `net_change`: share right after minus share right before, in points (-100 to 100).
    An item is right when its score reaches its metric's `RIGHT` (1, or 0.5 for chrf and token_f1).
    """

    kept: float | None
    base_right: int
    net_change: float
    n: int
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def retention(base: Sequence[Item], after: Sequence[Item]) -> Retention:
    """Compare the same items answered by the base and by a trained model.

    Raises:
        EvaluationError: no items, or items that only one of the two has answered.
    """
    before, now = {item.id: item for item in base}, {item.id: item for item in after}
    if before.keys() != now.keys() or not before:
        odd = sorted(before.keys() ^ now.keys())
        named = f"record {odd[0]} and {len(odd) - 1} others are in only one of the two" if odd else "there are none"
        raise EvaluationError(
            f"Retention compares the same items of base and trained model, but {named}.",
            "Evaluate both on the same `retain` set.",
        )
    right = [name for name, item in before.items() if item.right]
    change = 100 * (sum(item.right for item in now.values()) - len(right)) / len(before)
    if not right:
        return Retention(None, 0, change, len(before), "the base has no item right, so there is nothing to keep")
    return Retention(sum(now[name].right for name in right) / len(right), len(right), change, len(before))
