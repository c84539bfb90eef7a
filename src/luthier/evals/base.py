"""What a metric is, and what evaluating produces. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from luthier.errors import LuthierError
from luthier.parts import Part
from luthier.types import Record


class EvaluationError(LuthierError):
    """Records cannot be scored; names the record."""


class Metric(Part):
    """Scores the answers to records, each in [0,1], higher is better.

    `NEEDS` says what of: ("generation",) a generated text, ("choices",) the log-probability of each of
    the record's `choices`, ("logprobs",) the log-probability of the reference, ("pairs",) those of a chosen and a
    rejected answer. `RIGHT` is the score from which an answer counts as right (retention). A metric with
    `RANKS = False` is shown and never decides.

    EXAMPLES are answers and what they are worth, which the matrix tries: (options, {text, gold, and columns of the
    record}, score).

    Raise ValueError for a reference that cannot be scored: the message is shown with the record's name.
    """

    SLOT: ClassVar[str] = "metric"
    FOLDER: ClassVar[str] = "metrics"
    NEEDS: ClassVar[tuple[str, ...]] = ("generation",)
    RANKS: ClassVar[bool] = True
    RIGHT: ClassVar[float] = 1.0
    EXAMPLES: ClassVar[tuple[tuple[dict[str, Any], dict[str, Any], float], ...]] = ()

    def score(self, prediction: str, record: Record, reference: str) -> float:
        """The score of a generated or chosen answer."""
        raise self._without("score")

    def pick(self, logprobs: Sequence[float], choices: Sequence[str], tokens: Sequence[int]) -> int:
        """The index of the choice taken, from summed log-probabilities and token counts (NEEDS choices)."""
        raise self._without("pick")

    def of_logprobs(self, total: float, targets: int) -> float:
        """An item's value from the summed log-probability of its targets (NEEDS logprobs)."""
        raise self._without("of_logprobs")

    def of_pair(self, chosen: tuple[float, int], rejected: tuple[float, int]) -> float:
        """The score of a pair, each answer given by its summed log-probability and token count (NEEDS pairs)."""
        raise self._without("of_pair")

    def _without(self, verb: str) -> EvaluationError:
        return EvaluationError(f"{type(self).__name__} NEEDS {', '.join(self.NEEDS)} but does not define `{verb}`.")

    def combine(self, scores: Sequence[float], weights: Sequence[int]) -> float:
        """One number from all items; `weights` are target counts for NEEDS logprobs and 1 otherwise."""
        return sum(scores) / len(scores)


@dataclass(frozen=True)
class Item:
    """One record's answer and score; a line of evaluation.jsonl.

    `pictures` show the prompt, the reference or the prediction (under these names) where it is one: PNG as data URIs.
    """

    id: str
    prompt: str
    reference: str
    prediction: str
    score: float
    finish: str | None  # "stop" or "length"; None when nothing was generated
    metric: str
    right: bool
    pictures: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        line = asdict(self)
        return line if self.pictures else {key: value for key, value in line.items() if key != "pictures"}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Item:
        """From a line of evaluation.jsonl, which may hold more keys (`set`)."""
        known = {one.name for one in fields(cls)}
        return cls(**{key: value for key, value in line.items() if key in known})


@dataclass(frozen=True)
class Evaluation:
    """All items of one model on one set, ordered by record id.

    `name` is the metric's, or `mixed` when records carry their own; `reason` says who chose it.
    `generated` counts tokens written by the model, a cost that the table shows. Without `ranks` the mean
    is shown as it is (no share of 1) and decides nothing. `sheet` is a PNG of what was drawn, if anything was.
    `further` are numbers by name that are shown and decide nothing.
    """

    items: list[Item]
    mean: float
    name: str
    reason: str
    generated: int
    ranks: bool
    sheet: bytes = b""
    further: Mapping[str, float] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.items)

    def to_json(self) -> dict[str, Any]:
        """The summary; items are lines of their own file."""
        return {
            "metric": self.name,
            "n": self.n,
            "mean": self.mean,
            "reason": self.reason,
            "generated": self.generated,
            "ranks": self.ranks,
            "cut_off": sum(item.finish == "length" for item in self.items),
        }
