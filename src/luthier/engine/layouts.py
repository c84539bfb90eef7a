"""The layout of a training's batches: the first that keeps the hidden states of the run's own rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from luthier.data.batches import Layout, collate, group_by_record
from luthier.errors import ModelError, RecipeError
from luthier.models.policy import TokenPolicy
from luthier.models.trial import SHORT, RowTrial, two_endings
from luthier.types import Row

AUTO = "Set train.batch.layout=auto."


def choose_layout(
    policy: TokenPolicy, rows: Sequence[Row], asked: Literal["auto", "packed", "padded", "shared"], reader: str | None
) -> Layout:
    """The layout that a recipe asks for; `auto`: shared prompts, else padding, else rows of one length per forward.

    Each is tried on the longest rows of the run, the shortest, and some between. Without rows nothing is tried.

    Args:
        reader: the part that reads whole rows, whose prompts are then not shared, or None.

    Raises:
        ModelError: the model cannot read these rows, or does not work with that layout.
        RecipeError: a part does not work with that layout.
    """
    if asked == "shared" and reader is not None:
        raise RecipeError(f"`{reader}` reads whole records, which then cannot share a prompt.", AUTO)
    rows = [row for row in rows if len(row.ids)]
    if not rows:
        return "padded"
    trial, name = RowTrial(policy), type(policy.module).__name__
    tried = trial.chosen(rows)
    trial.refuse_unreadable(tried[0])
    if asked == "packed":
        if not trial.agrees(collate(tried, "packed"), tried):
            raise ModelError(
                f"In {name}, records that are packed into one row see each other or lose their positions: beside"
                f" others and alone, {trial.reason}.",
                AUTO,
            )
        return "packed"
    if asked != "padded" and reader is None:
        if _shares(trial, tried):
            policy.ragged = "padded"  # the second ending kept its states beside a longer row
            return "shared"
        if asked == "shared":
            raise ModelError(f"{name} cannot read one prompt for several answers: {trial.reason}.", AUTO)
    ragged = policy.ragged = trial.layout_of_ragged(rows)
    if ragged == "even":
        _refuse_even(name, rows, asked)
    return ragged


def _shares(trial: RowTrial, rows: Sequence[Row]) -> bool:
    """Whether a second ending of the longest row's beginning keeps its states behind that row, and rows beside it.

    Args:
        rows: the longest first. The second ending is shorter than all of them; if it does not keep its states, it is
            made as long as the shortest, since no switch between two lengths may lie between rows of the run.
    """
    longest, *others = (replace(row, streams={"weights": row.streams["weights"]}) for row in rows)
    for length in sorted({min(SHORT, len(rows[-1])), len(rows[-1])}):
        ends = two_endings(longest, length)
        # Beside rows of a large model the line would be computed again for each, and shows the same alone.
        batch = [longest, *ends[1:], *(others if trial.small else ())]
        if ends and trial.agrees(collate(batch, "shared"), batch):
            return True
    return False


def _refuse_even(name: str, rows: Sequence[Row], asked: str) -> None:
    """Raise ModelError if rows of several lengths must share a forward."""
    uneven = next((record for record in group_by_record(rows) if len({len(row) for row in record}) > 1), None)
    if uneven is not None:
        raise ModelError(
            f"{name} reads a row otherwise when it is padded to a longer one, and the rows of record"
            f" {uneven[0].record} have several lengths.",
            "Use an objective that reads single answers.",
        )
    if asked != "auto":
        raise ModelError(f"{name} reads a row otherwise when it is padded to a longer one.", AUTO)
