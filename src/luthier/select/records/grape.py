"""GRAPE: of several answers to one prompt, those that the model finds most natural."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from luthier.keyed import hash64
from luthier.select.records.base import Columns, Subset
from luthier.types import Candidate, Row


class Grape(Subset):
    """Keeps the `top` answers of each prompt with the highest log-probability per token under the untuned model.

    s(x, y) = (1/|y|) Σ_t log p(y_t | x, y_<t) over the answer's target tokens, the token that ends it included
    unless `include_eos` is off; `reduce: sum` is not divided, and favours short answers. Equal scores keep the
    order of the candidates; an answer given twice counts once. Prompts are compared as tokens, so answers to one
    prompt may come from several records and steps; `group_by: record` compares within a record.

    `by` also gives the controls: `unlikeliest`, `longest`, `random`. A text that repeats itself is likely: let
    only right answers compete (put `right` before it) where answers can be checked.

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
        for place, candidate in enumerate(candidates):
            key = candidate.record.id if self.group_by == "record" else prompt_of(candidate.row)
            groups.setdefault(key, []).append(place)
        logprobs = columns["logprobs"]
        scores = [self._score(one.row, logprobs[one.row.id], seed) for one in candidates]
        kept = []
        for places in groups.values():
            different = list({candidates[place].row.ids.tobytes(): place for place in reversed(places)}.values())
            best = sorted(different, key=lambda place: (-scores[place], place))
            kept += best[: self.top]
        return kept

    def _score(self, row: Row, logprobs: Sequence[float], seed: int) -> float:
        if self.by == "random":
            return float(hash64(seed, row.id))
        values = [float(logprobs[place]) for place in target_places(row)]
        if self.by == "longest":
            return float(len(values))
        values = values if self.include_eos else values[:-1]
        score = sum(values) / (max(1, len(values)) if self.reduce == "mean" else 1)
        return score if self.by == "likeliest" else -score


def target_places(row: Row) -> list[int]:
    """Where the targets of a row stand."""
    return [place for place, weight in enumerate(row.streams["weights"].values) if weight != 0 and place > 0]


def prompt_of(row: Row) -> bytes:
    """The tokens before the first target."""
    return row.ids[: next(iter(target_places(row)), len(row.ids))].tobytes()
