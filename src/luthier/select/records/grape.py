"""GRAPE: of several answers to a prompt, keep those that the untuned model finds most likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from luthier.keyed import hash64
from luthier.select.records.base import Columns, Subset
from luthier.types import Candidate, Row


class Grape(Subset):
    """Keeps the `top` answers of each prompt with the highest log-probability per token under the untuned model.

    s(x, y) = (1/|y|) Σ_t log p(y_t | x, y_<t) over the answer's target tokens, with the token that ends it
    unless `include_eos` is off; `reduce: sum` does not divide, and favours short answers. Equal scores keep the
    order of the candidates; an answer that occurs twice counts once. Prompts are compared as tokens, so answers to
    the same prompt may come from several records and steps; `group_by: record` compares within a record.

    `by` has controls: `unlikeliest`, `longest`, `random`. A text that repeats itself is likely: where answers can be
    checked, let only right answers compete (put `right` before `grape`).

    Source: arXiv 2502.04194.
    """

    PAPER: ClassVar[str] = "arXiv 2502.04194"
    READS: ClassVar = ("logprobs",)
    SETTINGS: ClassVar = (
        {},
        {"top": 2},
        {"by": "unlikeliest"},
        {"by": "longest"},
        {"by": "random"},
        {"reduce": "sum"},
        {"by": "unlikeliest", "include_eos": False},
        {"group_by": "record"},
    )

    top: int = Field(
        1,
        ge=1,
        description="Answers kept per prompt; an answer that occurs twice counts once. The paper keeps 1.",
    )
    by: Literal["likeliest", "unlikeliest", "longest", "random"] = Field(
        "likeliest",
        description="Which answers are kept: the `likeliest` (the paper's), or as controls the `unlikeliest`, the "
        "`longest` or a `random` draw.",
    )
    reduce: Literal["mean", "sum"] = Field(
        "mean",
        description="`mean` scores by log-probability per token, as the paper does; `sum` by that of the whole answer,"
        " which favours short ones.",
    )
    include_eos: bool = Field(
        True,
        description="Whether the token that ends the answer counts in its score, as it does in training. The paper "
        "does not say.",
    )
    group_by: Literal["prompt", "record"] = Field(
        "prompt",
        description="Which answers compete: those whose prompts are the same tokens (`prompt`), or those of one "
        "`record`.",
    )

    def choose(self, candidates: Sequence[Candidate], columns: Columns, seed: int) -> list[int]:
        groups: dict[object, list[int]] = {}
        for index, candidate in enumerate(candidates):
            key = candidate.record.id if self.group_by == "record" else prompt_of(candidate.row)
            groups.setdefault(key, []).append(index)
        logprobs = columns["logprobs"]
        scores = [self._score(candidate.row, logprobs[candidate.row.id], seed) for candidate in candidates]
        kept = []
        for indices in groups.values():
            # Reversed, so that of equal answers the first candidate stays.
            distinct = {candidates[index].row.ids.tobytes(): index for index in reversed(indices)}
            best = sorted(distinct.values(), key=lambda index: (-scores[index], index))
            kept += best[: self.top]
        return kept

    def _score(self, row: Row, logprobs: Sequence[float], seed: int) -> float:
        if self.by == "random":
            return float(hash64(seed, row.id))
        values = [float(logprobs[position]) for position in target_positions(row)]
        if self.by == "longest":
            return float(len(values))
        values = values if self.include_eos else values[:-1]
        score = sum(values) / (max(1, len(values)) if self.reduce == "mean" else 1)
        return score if self.by == "likeliest" else -score


def target_positions(row: Row) -> list[int]:
    """Positions of the row's targets; position 0 is never one, as nothing predicts it."""
    weights = row.streams["weights"].values
    return [position for position, weight in enumerate(weights) if weight != 0 and position > 0]


def prompt_of(row: Row) -> bytes:
    """The tokens before the first target, as bytes that compare and hash."""
    return row.ids[: next(iter(target_positions(row)), len(row.ids))].tobytes()
