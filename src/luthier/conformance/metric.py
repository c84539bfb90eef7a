"""The checks of metrics: on invented answers, on hostile ones, on log-probabilities, and on the part's EXAMPLES."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.conformance import texts
from luthier.conformance.base import Failed, check_options, variants
from luthier.evals.base import Metric
from luthier.types import Record

PAIRS = (  # an answer and a reference
    ("1.001", "1"), ("a", "a"), ("A", "a"), (" a", "a"), ("b", "b"), ("a", "b"), ("", "a"), ('{"a": 1}', '{"a": 1}'),
    ('{"a": "X"}', '{"a": "x"}'), ('{"a": 1}', '{"a": 1, "b": [2, 3]}'), ("12", "so #### 12"), ("1 #### 3", "1 #### 3"),
    ("1 #### 3", "3 #### 1"), ("the cat sat", "a cat  sat"), ("abcdefgh", "abcdfegh"), ("aaab", "abbb"),
)  # fmt: skip
LOGPROBS = ((-0.5, -6.0, -9.0), (-9.0, -6.0, -0.5), (-4.0, -4.0, -30.0), (-10.0, -3.0, -4.5))
"""Summed log-probabilities of three choices."""
CHOICES, TOKENS = ("yes", "no, never in my life", "x"), (1, 6, 2)
SURE, DOUBTFUL = (-1.0, 4), (-40.0, 4)
"""Summed log-probability and tokens of an answer that a model finds likely, and of one that it does not."""


def example_of(fields: Mapping[str, Any]) -> Record:
    """A record with these columns."""
    return Record("record", "prompt_completion", {"prompt": "p", "completion": "c", **fields}, "invented")


def score_of(metric: Metric, prediction: str, reference: str, fields: Mapping[str, Any] | None = None) -> float | None:
    """The score of an answer, or None where the metric refuses the reference by ValueError.

    Raises:
        Failed: the score is no finite number, or outside of 0 to 1 although the metric RANKS.
    """
    try:
        score = metric.score(prediction, example_of(fields or {}), reference)
    except ValueError:
        return None
    _refuse_outside(metric, score, f"the answer {texts.short(prediction)}")
    return score


def _refuse_outside(metric: Metric, score: Any, what: str) -> None:
    if not isinstance(score, int | float) or not math.isfinite(score):
        raise Failed(f"{metric!r}: {what} is worth {score!r}, no finite number")
    if metric.RANKS and not 0.0 <= score <= 1.0:
        raise Failed(f"{metric!r}: {what} is worth {score:g}: a score lies from 0 to 1")


def check_scores(metrics: Sequence[Metric]) -> None:
    """Scores of invented answers lie from 0 to 1, and the reference as the answer counts as right."""
    for metric in metrics:
        scores = [score_of(metric, prediction, reference) for prediction, reference in PAIRS]
        if all(score is None for score in scores):
            if metric.EXAMPLES:  # these show that the metric scores something
                continue
            raise Failed(f"{metric!r}: refuses every invented reference: write EXAMPLES of what it scores")
        for _, reference in PAIRS:
            score = score_of(metric, reference, reference)
            if score is not None and metric.RANKS and score < metric.RIGHT and _rewards_reference(metric):
                raise Failed(
                    f"{metric!r}: the reference {reference!r} as the answer is worth {score:g}, less than RIGHT"
                    f" ({metric.RIGHT:g})"
                )


def _rewards_reference(metric: Metric) -> bool:
    """Whether the metric compares with the reference: another reference changes some score."""
    answers = [prediction for prediction, _ in PAIRS]
    references = [reference for _, reference in PAIRS]
    for answer in answers:
        scores = {score_of(metric, answer, reference) for reference in references} - {None}
        if len(scores) > 1:
            return True
    return False


def check_any_answer(metrics: Sequence[Metric]) -> None:
    """Any text of a model gets a score in time; a reference may be refused by ValueError."""
    for metric in metrics:
        for text in texts.HOSTILE:
            for prediction, reference in ((text, "42"), (text, '{"a": 1}'), (text, "a"), ("42", text)):
                texts.survived(metric, text, lambda p=prediction, r=reference, m=metric: score_of(m, p, r))


def check_pure(metric: Metric) -> None:
    """The same answer gets the same score, in any order, and the record does not change."""
    fields = {"choices": ["a", "b"], "topic": "letters"}
    record = example_of(fields)
    before = copy.deepcopy(record.fields)
    for prediction, reference in PAIRS:
        try:
            metric.score(prediction, record, reference)
        except ValueError:
            continue
    if record.fields != before:
        raise Failed("`score` changes the columns of the record: copy them")
    forwards = [score_of(metric, *pair) for pair in PAIRS]
    backwards = [score_of(metric, *pair) for pair in PAIRS[::-1]][::-1]
    if forwards != backwards:
        raise Failed("an answer gets another score the second time: is there a random call, or memory?")


def check_choices(metrics: Sequence[Metric]) -> None:
    """`pick` returns an index; it picks the by far likeliest of equally long choices, whatever their order."""
    for metric in metrics:
        for logprobs in LOGPROBS:
            index = metric.pick(logprobs, CHOICES, TOKENS)
            if not isinstance(index, int) or not 0 <= index < len(CHOICES):
                raise Failed(f"{metric!r}: `pick` returns {index!r}, no index of {len(CHOICES)} choices")
            backwards = metric.pick(logprobs[::-1], CHOICES[::-1], TOKENS[::-1])
            if CHOICES[index] != CHOICES[::-1][backwards]:
                raise Failed(f"{metric!r}: with the choices in another order `pick` picks another one")
        if metric.pick((-0.1, -50.0, -60.0), ("a", "b", "c"), (2, 2, 2)) != 0:
            raise Failed(f"{metric!r}: `pick` does not pick the by far likeliest of equally long choices")


def check_logprobs(metrics: Sequence[Metric]) -> None:
    """`of_logprobs` is finite and different for a likely and an unlikely reference; so is `combine` of both."""
    for metric in metrics:
        likely, unlikely = metric.of_logprobs(*SURE), metric.of_logprobs(*DOUBTFUL)
        for what, score in (("a likely reference", likely), ("an unlikely reference", unlikely)):
            _refuse_outside(metric, score, what)
        if likely == unlikely:
            raise Failed(f"{metric!r}: a likely and an unlikely reference are both worth {likely:g}")
        _refuse_outside(metric, metric.combine([likely, unlikely], [SURE[1], DOUBTFUL[1]]), "both together")


def check_pairs(metrics: Sequence[Metric]) -> None:
    """`of_pair` lies from 0 to 1, and is higher where the chosen answer is the likelier one."""
    for metric in metrics:
        right, wrong = metric.of_pair(SURE, DOUBTFUL), metric.of_pair(DOUBTFUL, SURE)
        for what, score in (("a pair in the right order", right), ("a pair in the wrong order", wrong)):
            _refuse_outside(metric, score, what)
        if not right > wrong:
            raise Failed(f"{metric!r}: {right:g} where the chosen answer is likelier, {wrong:g} where the rejected is")


def check_examples(part: type[Metric]) -> None:
    """Every example of the part gets the score that EXAMPLES names."""
    for settings, described, worth in part.EXAMPLES:
        fields = dict(described)
        score = score_of(part(**settings), fields.pop("text"), fields.pop("gold"), fields)
        if score is None or not math.isclose(score, worth):
            example = json.dumps(described, ensure_ascii=False)
            raise Failed(f"EXAMPLES says that {example} is worth {worth}, and it is worth {score}")


def numbers_of(metric: Metric) -> dict[str, Tensor]:
    """All numbers of the metric on the invented answers and on those of its examples."""
    numbers: dict[str, list[float]] = {}
    if "generation" in metric.NEEDS:
        scores = [score_of(metric, prediction, reference) for prediction, reference in PAIRS]
        for _, example, _ in metric.EXAMPLES:
            scores.append(score_of(metric, example["text"], example["gold"], example))
        numbers["scores"] = [-1.0 if score is None else score for score in scores]  # -1: refused
    if "choices" in metric.NEEDS:
        numbers["choices"] = [float(metric.pick(logprobs, CHOICES, TOKENS)) for logprobs in LOGPROBS]
    if "logprobs" in metric.NEEDS:
        numbers["logprobs"] = [metric.of_logprobs(*SURE), metric.combine([1.0, 3.0], [1, 5])]
    if "pairs" in metric.NEEDS:
        numbers["pairs"] = [metric.of_pair((-6.0, 2), (-8.0, 8)), metric.of_pair(SURE, DOUBTFUL)]
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in numbers.items()}


BY_NEED: Mapping[str, tuple[str, Callable[[Sequence[Metric]], None]]] = {
    "choices": ("picks the same choice in any order", check_choices),
    "logprobs": ("finite values of log-probabilities", check_logprobs),
    "pairs": ("pairs: from 0 to 1, higher in the right order", check_pairs),
}


def checks(part: type[Any]) -> Iterator[tuple[str, Callable[[], None]]]:
    """The checks of a metric, in the order they are run."""
    metrics = variants(part)
    if "generation" in part.NEEDS:
        yield "scores from 0 to 1, the reference is right", lambda: check_scores(metrics)
        yield "a score for any answer, in time", lambda: check_any_answer(metrics[:1])
        yield "deterministic, its input unchanged", lambda: check_pure(metrics[0])
    for need, (name, check) in BY_NEED.items():
        if need in part.NEEDS:
            yield name, lambda check=check: check(metrics)
    yield "every option changes something", lambda: check_options(metrics, numbers_of)
    if part.EXAMPLES:
        yield "its examples hold", lambda: check_examples(part)
