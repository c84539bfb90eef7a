"""Evaluate a model on records: let it answer, then measure the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.data.shapes import has_reference
from luthier.errors import RecipeError
from luthier.evals.answering import WAYS, EvaluatedModel, Question, ReferenceRenderer, Reply, refuse_infinite
from luthier.evals.auto import choose_metric, metric_of_odd
from luthier.evals.base import Evaluation, EvaluationError, Item, Metric
from luthier.parts import build
from luthier.records.choices import IN_WORDS, Choices, Naming, chosen, labelled, lists_choices, naming_of, read_choices
from luthier.sampling.check import refuse_unreadable
from luthier.sampling.scoring import sequence_logprobs
from luthier.types import Record, Row

Progress = Callable[[int, int], None]
RECORD_COLUMNS = ("metric", "choices")
"""Columns of a record that decide how it is scored, whatever the recipe's metric."""


def evaluate(
    model: EvaluatedModel,
    records: Sequence[Record],
    metric: Any,
    progress: Progress | None = None,
    base: Path | None = None,
) -> Evaluation:
    """Answer and score records; the scores do not depend on the order of the records.

    A record's own `metric` column (a metric's name or block) comes before `metric`. With `auto`, records that have
    `choices` are multiple choice, and the shape of the other records decides their metric.

    Args:
        records: the set, ids unique; records whose own answer is labelled bad or marked as context have no
            reference and are left out.
        metric: a Metric, or what a recipe writes: `auto`, a name, a block, a file.
        progress: called with (records done, records in all).
        base: folder that part files in `metric` are relative to.

    Raises:
        EvaluationError: no records, or one that cannot be scored; names the record.
    """
    questions, reason = questions_of(records, model.renderer, metric, base)
    replies: list[tuple[Question, Reply]] = []

    def finished(count: int) -> None:
        if progress is not None:
            progress(answered + count, len(questions))

    for way in WAYS:
        answered = len(replies)
        asked = [question for question in questions if way.NEED in question.metric.NEEDS]
        if asked:
            replies += zip(asked, way.replies(model, asked, finished), strict=True)
    return _summary(replies, model.renderer, reason)


def refuse_unscorable(
    records: Sequence[Record], renderer: ReferenceRenderer, metric: Any, base: Path | None = None, module: Any = None
) -> None:
    """Refuse before training the records that `evaluate` could not score after it.

    Each gold answer is measured against itself. A model that records ask for answers has to read a prompt.

    Args:
        module: the model that will be evaluated; None: it is not loaded yet.

    Raises:
        EvaluationError: no records, or one that cannot be scored; names the record.
        ModelError: the model cannot continue a prompt.
    """
    questions, _ = questions_of(records, renderer, metric, base)
    asked = [question.record for question in questions if {"generation", "choices"} & set(question.metric.NEEDS)]
    if module is not None and asked and (prompt := renderer.prompt(asked[0])):
        refuse_unreadable(module, prompt)
    for question in questions:
        for way in WAYS:
            if way.NEED in question.metric.NEEDS:
                way.refuse(question, renderer)


def questions_of(
    records: Sequence[Record], renderer: ReferenceRenderer, metric: Any, base: Path | None
) -> tuple[list[Question], str]:
    """The records that have a reference, ordered by id, with their metrics; and who chose the metrics."""
    scorable = [record for record in records if has_reference(record)]
    if not scorable:
        unscored = f" All {len(records)} have `label: false` or a last answer that is not to be learned."
        raise EvaluationError(
            f"There are no records to evaluate.{unscored if records else ''}", "Check the source of the evaluation set."
        )
    scorable.sort(key=lambda record: record.id)
    references = {record.id: renderer.reference(record) for record in scorable}
    metrics, reason = assign_metrics(scorable, references, metric, base)
    questions = [Question(record, references[record.id], metrics[record.id]) for record in scorable]
    return with_options(questions, renderer, reason)


def with_options(questions: Sequence[Question], renderer: ReferenceRenderer, reason: str) -> tuple[list[Question], str]:
    """The questions, those of multiple choice with their options, and the reason with how the options were read.

    The model is scored on the texts of the choices. Where its answers are letters or indices and the prompts list the
    choices, it is scored on these letters or indices. How answers name choices is one decision for the whole set.
    """
    asked: dict[int, Choices] = {}
    for index, question in enumerate(questions):
        choices = read_choices(question.record.fields.get("choices"))
        if "choices" in question.metric.NEEDS and choices is not None:
            asked[index] = choices
    if not asked:
        return list(questions), reason
    naming, words = naming_of([(questions[index].reference, choices) for index, choices in asked.items()])
    written: set[Naming] = {questions[index].metric.naming for index in asked}
    if len(written) == 1 and written != {"auto"}:
        (naming,) = written
        words = f"the answers are {IN_WORDS[naming]}"
    prompts = {index: renderer.prompt_text(questions[index].record) for index in asked}
    listed = all(lists_choices(prompts[index], choices) for index, choices in asked.items())
    optioned = list(questions)
    for index, choices in asked.items():
        question = questions[index]
        own = question.metric.naming
        way = naming if own == "auto" else own
        right = chosen(question.reference, choices, way)
        if right is not None:
            by_label = listed and way not in ("text", "auto")
            options = labelled(question.reference, choices, way) if by_label else choices.texts
            optioned[index] = replace(question, reference=options[right], options=options)
    if naming != "text":
        words += ", which the prompts list" if listed else "; the texts are compared, as the prompts do not list them"
    # That references are the texts of choices is the rule, and said only where they could be something else.
    return optioned, reason if naming == "text" and ";" not in words else f"{reason}; {words}"


def assign_metrics(
    records: Sequence[Record], references: Mapping[str, str], metric: Any, base: Path | None
) -> tuple[dict[str, Metric], str]:
    """The metric of each record by id, and who chose it.

    Args:
        references: by record id.
        metric, base: as `evaluate` has them.
    """
    own: dict[str, Any] = {}
    for record in records:
        if record.fields.get("metric") is not None:
            own[record.id] = record.fields["metric"]
        elif metric == "auto" and record.fields.get("choices"):
            own[record.id] = "choice"
    rest = [record for record in records if record.id not in own]
    reason = "set in the recipe" if rest else "each record names its metric or has `choices`"
    if metric == "auto" and rest:
        metric, reason = choose_metric(rest, [references[record.id] for record in rest])
        for record in rest:
            if (odd := metric_of_odd(metric, references[record.id])) != metric:
                own[record.id] = odd
    # One object per spelling: a metric of a user's file is loaded once, not for every record.
    built = {repr(metric): build("metric", metric, base)} if rest else {}
    for record in records:
        if repr(own.get(record.id, metric)) not in built:
            built[repr(own[record.id])] = _own_metric(record, own[record.id], base)
    return {record.id: built[repr(own.get(record.id, metric))] for record in records}, reason


def _own_metric(record: Record, spec: Any, base: Path | None) -> Metric:
    try:
        return build("metric", spec, base)
    except RecipeError as error:
        raise EvaluationError(f"Record {record.id} ({record.origin}): {error.message}", error.hint) from error


def perplexity(module: Any, rows: Sequence[Row], progress: Progress | None = None) -> float:
    """Exponential of the mean negative log-probability over all targets of tokenised rows.

    Raises:
        EvaluationError: the rows have no target.
    """
    report = None if progress is None else lambda done: progress(done, len(rows))
    logprobs = sequence_logprobs(module, rows, progress=report)
    targets = sum(count for _, count in logprobs)
    if not targets:
        raise EvaluationError(
            "There is no target token to compute a perplexity from.", "Check the mask: `luthier check` shows it."
        )
    for row, (total, _) in zip(rows, logprobs, strict=True):
        refuse_infinite(total, f"Record {row.id}")
    return math.exp(-sum(total for total, _ in logprobs) / targets)


def _summary(replies: Sequence[tuple[Question, Reply]], renderer: ReferenceRenderer, reason: str) -> Evaluation:
    """All items ordered by record id, and their mean in the way of their metric."""
    ordered = sorted(replies, key=lambda pair: pair[0].record.id)
    items = [_item(question, reply, renderer) for question, reply in ordered]
    first = ordered[0][0].metric
    mixed = len({item.metric for item in items}) > 1
    unranked = next((question for question, _ in ordered if not question.metric.RANKS), None)
    if mixed and unranked is not None:
        raise EvaluationError(
            f"Record {unranked.record.id}: `{unranked.metric.kind}` cannot be averaged with other metrics.",
            "Evaluate these records as a set of their own.",
        )
    scores = [item.score for item in items]
    mean = sum(scores) / len(scores) if mixed else first.combine(scores, [reply.weight for _, reply in ordered])
    generated = sum(reply.generated for _, reply in ordered)
    return Evaluation(items, mean, "mixed" if mixed else first.kind, reason, generated, first.RANKS)


def _item(question: Question, reply: Reply, renderer: ReferenceRenderer) -> Item:
    record, metric = question.record, question.metric
    return Item(
        id=record.id,
        prompt=renderer.prompt_text(record),
        reference=question.reference,
        prediction=reply.prediction,
        score=reply.score,
        finish=reply.finish,
        metric=metric.kind,
        right=reply.score >= metric.RIGHT,
        group=record.group,
    )
