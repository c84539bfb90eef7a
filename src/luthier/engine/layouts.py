"""The layout of a training's batches: the first that keeps the hidden states of the run's own rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from luthier.data.batches import LINE, Layout, collate, group_by_record, may_share, prompt_length, share_prompts
from luthier.errors import ModelError, RecipeError
from luthier.models.policy import TokenPolicy
from luthier.models.probes import Probe
from luthier.types import Row, Stream

AUTO = "Set train.batch.layout=auto."
OTHER_ANSWER = 8
"""Tokens of the second answer to a prompt, on which a shared prompt is tried."""


def choose_layout(
    policy: TokenPolicy, rows: Sequence[Row], asked: Literal["auto", "packed", "padded", "shared"], reader: str | None
) -> Layout:
    """The layout that a recipe asks for; `auto`: shared prompts, else padding, else rows of one length per forward.

    Each is tried on the longest rows of the run, the shortest and one between. Without rows nothing is tried.

    Args:
        reader: the part that reads whole rows, whose prompts are then not shared, or None.

    Raises:
        ModelError: the model cannot read these rows, sees the future, or does not work with that layout.
        RecipeError: a part does not work with that layout.
    """
    if asked == "shared" and reader is not None:
        raise RecipeError(f"`{reader}` reads whole records, which then cannot share a prompt.", AUTO)
    rows = [row for row in rows if len(row.ids)]
    if not rows:
        return "padded"
    probe, name = Probe(policy), type(policy.module).__name__
    tried = probe.chosen(rows)
    probe.refuse_unreadable(tried[0])
    probe.refuse_future(tried[0])
    if asked == "packed":
        if not probe.agrees(collate(tried, "packed"), tried):
            raise ModelError(
                f"In {name}, records that are packed into one row see each other or lose their positions: beside"
                f" others and alone, {probe.reason}.",
                AUTO,
            )
        return "packed"
    ragged = probe.layout_of_ragged(rows)
    uneven = next((record for record in group_by_record(rows) if len({len(row) for row in record}) > 1), None)
    if ragged == "even" and (asked != "auto" or uneven is not None):
        answers = "" if uneven is None else f", and the rows of record {uneven[0].record} have several lengths"
        raise ModelError(
            f"{name} reads a row otherwise when it is padded to a longer one{answers}.",
            AUTO if uneven is None else "Use an objective that reads single answers, or rows of one length.",
        )
    if asked == "padded" or ragged == "even":
        return ragged
    answers = _two_answers(rows) if reader is None else []
    if not answers:
        return "shared" if asked == "shared" or reader is None else "padded"
    if probe.agrees(collate(answers, "shared"), answers):
        return "shared"
    if asked == "shared":
        raise ModelError(f"{name} cannot read one prompt for several answers: {probe.reason}.", AUTO)
    return "padded"


def _two_answers(rows: Sequence[Row]) -> list[Row]:
    """The longest row that may share its prompt, and a second, short answer to that prompt; empty if none may."""
    fitting = (row for row in rows if len(row) + OTHER_ANSWER <= LINE and may_share([row]))
    row = max(fitting, key=lambda row: (len(row), row.id), default=None)
    if row is None:
        return []
    first = prompt_length(row)
    end = min(len(row), first + OTHER_ANSWER)
    ids, weights = row.ids[:end].copy(), row.streams["weights"].values[:end]
    ids[first:] = row.ids[: end - first]  # tokens of the prompt, as another answer
    other = replace(row, id=f"{row.id}/other", record=f"{row.record}/other", ids=ids, shared=0)
    other = replace(other, streams={"weights": Stream(weights, "token")})
    row = replace(row, streams={"weights": row.streams["weights"]}, shared=0)
    return share_prompts([[row], [other]], LINE)[0]
