"""Worked examples of a metric on the user's own references: what it calls right, and what it calls wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError
from luthier.evals.answering import Question, ReferenceRenderer
from luthier.evals.evaluate import _questions
from luthier.types import Record

EXAMPLES = 3
OTHERS = 200
"""Other references of the set that are tried as wrong answers."""


@dataclass(frozen=True)
class MetricExample:
    """A reference with an answer that the metric calls right and one that it calls wrong, and their scores.

    Attributes:
        right, wrong: answer and score; None if no answer that was tried is.
        mistaken: another reference of the set that the metric takes for this one; None if there is none.
    """

    record: str
    metric: str
    reference: str
    right: tuple[str, float] | None
    wrong: tuple[str, float] | None
    mistaken: str | None = None


@dataclass(frozen=True)
class ExplainedMetric:
    """The metric of a set, why it was chosen, and worked examples."""

    name: str
    reason: str
    examples: tuple[MetricExample, ...]


def explain_metric(
    records: Sequence[Record], renderer: ReferenceRenderer, metric: Any, base: Path | None = None
) -> ExplainedMetric:
    """What `evaluate` would score these records by, shown on EXAMPLES of their references; no model takes part.

    Raises:
        EvaluationError: no records, or a record whose metric cannot be read.
    """
    questions, reason = _questions(records, renderer, metric, base)
    names = {question.metric.kind for question in questions}
    worked = [question for question in questions if "generation" in question.metric.NEEDS][:EXAMPLES]
    examples = tuple(_worked(question, questions) for question in worked)
    return ExplainedMetric("mixed" if len(names) > 1 else names.pop(), reason, examples)


def _worked(question: Question, questions: Sequence[Question]) -> MetricExample:
    reference, border = question.reference, question.metric.RIGHT
    others = list(_others(question, questions))
    wrong = next(((text, score) for text, score in others if score < border), None)
    mistaken = next((text for text, score in others if score >= border), None)
    own = _score(question, reference)
    right = (reference, own) if own >= border else None
    return MetricExample(question.record.id, question.metric.kind, reference, right, wrong, mistaken)


def _others(question: Question, questions: Sequence[Question]) -> Iterator[tuple[str, float]]:
    """Other references and their scores, those with the most words in common first."""
    words = {*question.reference.split()}
    texts = dict.fromkeys(other.reference for other in questions[:OTHERS])
    for text in sorted(texts, key=lambda text: len(words.symmetric_difference(text.split()))):
        if " ".join(text.split()).casefold() != " ".join(question.reference.split()).casefold():
            yield text, _score(question, text)


def _score(question: Question, answer: str) -> float:
    try:
        return question.measure(answer)
    except LuthierError:
        return 0.0
