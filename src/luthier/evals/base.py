"""The family of metrics, and the scores that an evaluation produces. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from luthier.errors import LuthierError
from luthier.parts import Part
from luthier.records.choices import Naming
from luthier.types import Record


class EvaluationError(LuthierError):
    """A record cannot be scored; the message names the record."""


class Metric(Part):
    """Scores the answers to records, each score in [0,1], higher is better.

    NEEDS: what a metric scores: ("generation",) a generated text, ("choices",) the log-probability of each of the
        record's `choices`, ("logprobs",) the log-probability of the reference, ("pairs",) the log-probabilities of a
        chosen and a rejected answer. `evals/answering.py` has one class for each.
    RIGHT: the score from which an answer counts as right (retention).
    RANKS: False for a metric that is shown and never decides between methods.
    EXAMPLES: answers with their scores, which `luthier check` tries: (options, {text, gold, and columns of the record},
        score).

    Raise ValueError for a reference that cannot be scored: the message is shown with the record's name.
    """

    SLOT: ClassVar[str] = "metric"
    FOLDER: ClassVar[str] = "metrics"
    NEEDS: ClassVar[tuple[str, ...]] = ("generation",)
    RANKS: ClassVar[bool] = True
    RIGHT: ClassVar[float] = 1.0
    EXAMPLES: ClassVar[tuple[tuple[dict[str, Any], dict[str, Any], float], ...]] = ()

    def score(self, prediction: str, record: Record, reference: str) -> float:
        """The score of a generated or chosen answer (NEEDS generation or choices)."""
        raise self._without("score")

    def pick(self, logprobs: Sequence[float], choices: Sequence[str], tokens: Sequence[int]) -> int:
        """The index of the best choice (NEEDS choices).

        Args:
            logprobs: per choice, the log-probability summed over its tokens, in nats.
            tokens: per choice, its number of tokens.
        """
        raise self._without("pick")

    @property
    def naming(self) -> Naming:
        """How references name the right one of a record's choices (NEEDS choices)."""
        return "auto"

    def of_logprobs(self, total: float, targets: int) -> float:
        """An item's score from `total`, the log-probability summed over its `targets` tokens (NEEDS logprobs)."""
        raise self._without("of_logprobs")

    def of_pair(self, chosen: tuple[float, int], rejected: tuple[float, int]) -> float:
        """The score of a pair; each answer is its summed log-probability and its number of tokens (NEEDS pairs)."""
        raise self._without("of_pair")

    def _without(self, method: str) -> EvaluationError:
        return EvaluationError(f"{type(self).__name__} NEEDS {', '.join(self.NEEDS)} but does not define `{method}`.")

    def combine(self, scores: Sequence[float], weights: Sequence[int]) -> float:
        """One number for all items; `weights` are the numbers of targets for NEEDS logprobs and 1 otherwise."""
        return sum(scores) / len(scores)


@dataclass(frozen=True)
class Item:
    """One record's answer and score; a line of evaluation.jsonl.

    `pictures` holds the prompt, the reference or the prediction (under these names) if it is an image: a PNG as a data
    URI. `finish` is "stop" or "length", and None if nothing was generated. Items of one `group` are not independent; it
    is the id of one of their records, which is the item's own where it stands alone.
    """

    id: str
    prompt: str
    reference: str
    prediction: str
    score: float
    finish: str | None
    metric: str
    right: bool
    pictures: Mapping[str, str] = field(default_factory=dict)
    group: str = ""

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.id)

    def to_json(self) -> dict[str, Any]:
        line = asdict(self)
        if not self.pictures:
            del line["pictures"]
        return line

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Item:
        """From a line of evaluation.jsonl, which may hold more keys (`set`)."""
        known = {attribute.name for attribute in fields(cls)}
        return cls(**{key: value for key, value in line.items() if key in known})


@dataclass(frozen=True)
class Evaluation:
    """All items of one model on one set, ordered by record id.

    Attributes:
        mean: the metric's number for all items.
        name: the metric, or `mixed` if the items have several.
        reason: who chose the metric.
        generated: tokens that the model wrote, a cost that the table shows.
        ranks: False if the mean is no share of 1 and decides nothing.
        sheet: a PNG of the images that the model drew; empty if it drew none.
        further: numbers by name that are shown and decide nothing.
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
        """The summary for run.json, without the items, which evaluation.jsonl holds."""
        return {
            "metric": self.name,
            "n": self.n,
            "mean": self.mean,
            "reason": self.reason,
            "generated": self.generated,
            "ranks": self.ranks,
            "cut_off": sum(item.finish == "length" for item in self.items),
        }
