"""Worked examples of a metric on the user's own references: what it calls right, and what it calls wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from luthier.answers.final import answer_of
from luthier.errors import LuthierError
from luthier.evals.answering import Question, ReferenceRenderer
from luthier.evals.evaluate import questions_of
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
        EvaluationError: no records, or a record whose metric or choices cannot be read.
    """
    questions, reason = questions_of(records, renderer, metric, base)
    names = {question.metric.kind for question in questions}
    examples = tuple(_worked(question, questions) for question in _spread(questions))
    return ExplainedMetric("mixed" if len(names) > 1 else names.pop(), reason, examples)


def _spread(questions: Sequence[Question]) -> list[Question]:
    """Questions with different references, from the beginning, the middle and the end of the set."""
    asked: dict[str, Question] = {}
    for question in questions:
        if {"generation", "choices"} & set(question.metric.NEEDS):
            asked.setdefault(question.reference, question)
    different = list(asked.values())
    step = max(1, (len(different) - 1) // (EXAMPLES - 1)) if len(different) > 1 else 1
    return different[::step][:EXAMPLES]


def _worked(question: Question, questions: Sequence[Question]) -> MetricExample:
    others = _others(question, questions)
    scored = [(answer, _score(question, answer)) for answer in (*_restated(question), question.reference)]
    right = next(((answer, score) for answer, score in scored if score >= question.metric.RIGHT), None)
    changed = [(answer, _score(question, answer)) for answer in (*others, *_changed(question.reference), "")]
    wrong = next(((answer, score) for answer, score in changed if score < question.metric.RIGHT), None)
    alike = {answer for answer, score in changed[: len(others)] if score >= question.metric.RIGHT}
    mistaken = next((answer for answer in others if answer in alike and not _same_text(answer, question)), None)
    return MetricExample(question.record.id, question.metric.kind, question.reference, right, wrong, mistaken)


def _score(question: Question, answer: str) -> float:
    try:
        return question.measure(answer)
    except LuthierError:
        return 0.0


def _others(question: Question, questions: Sequence[Question]) -> list[str]:
    """Other answers of the set, the most similar first: the other choices, or other records' references."""
    if question.options:
        return [option for option in question.options if option != question.reference]
    references = dict.fromkeys(other.reference for other in questions if other.reference != question.reference)
    matcher = SequenceMatcher(None, "", question.reference[:200], autojunk=False)

    def similarity(text: str) -> float:
        matcher.set_seq1(text[:200])
        return matcher.quick_ratio()

    return sorted(list(references)[:OTHERS], key=similarity, reverse=True)


def _restated(question: Question) -> Iterator[str]:
    """The reference in other words and forms; which of them are right depends on the metric."""
    reference = question.reference
    if question.options:
        return
    if question.metric.kind == "math" and (answer := answer_of(reference)) not in ("", reference):
        yield f"So it is ${answer}$."
    if question.metric.kind == "number" and (answer := answer_of(reference)) not in ("", reference):
        yield f"The answer is {answer}"
    try:
        document = json.loads(reference)
        if isinstance(document, dict) and len(document) > 1:
            yield json.dumps(dict(reversed(document.items())), ensure_ascii=False)
    except ValueError:
        pass
    if "\n" not in reference and len(reference) <= 100:
        if "boxed" not in reference:
            yield f"The answer is {reference}"
        yield reference.upper() if reference.upper() != reference else f" {reference} "


def _changed(reference: str) -> Iterator[str]:
    """The reference with its last number changed, or with a word more."""
    match = re.search(r"\d+(?=\D*\Z)", reference[-500:])
    if match is not None:
        start = max(0, len(reference) - 500)
        number = int(match[0][-9:]) + 1
        yield f"{reference[: start + match.start()]}{number}{reference[start + match.end() :]}"
    yield f"not {reference}"


def _same_text(answer: str, question: Question) -> bool:
    """Whether an answer is the reference but for case and spacing, which no one calls a mistake."""
    return " ".join(answer.split()).casefold() == " ".join(question.reference.split()).casefold()
