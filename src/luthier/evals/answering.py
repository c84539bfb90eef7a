"""How a model answers the records of an evaluation: one class per entry of `Metric.NEEDS`.

A way of answering refuses records that it cannot ask about, and turns the others into answers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from luthier.errors import LuthierError
from luthier.evals.base import EvaluationError, Metric
from luthier.keyed import hash64
from luthier.sampling.native import NativeSampler
from luthier.sampling.scoring import choice_logprobs, sequence_logprobs
from luthier.sampling.text import answer_text
from luthier.types import Record, Request, Row, Sampling

Finished = Callable[[int], None]


class ReferenceRenderer(Protocol):
    """The methods of a renderer that an evaluation calls."""

    @property
    def end_ids(self) -> set[int]: ...
    def prompt(self, record: Record) -> list[int]: ...
    def prompt_text(self, record: Record) -> str: ...
    def reference(self, record: Record) -> str: ...
    def render(self, record: Record) -> Row: ...
    def explain(self, record: Record) -> Any: ...


class GenerationSettings(Protocol):
    """The `generate` block of a recipe."""

    @property
    def rows(self) -> int | None: ...
    def sampling(self) -> Sampling: ...


@dataclass(frozen=True)
class EvaluatedModel:
    """A model, and how it is asked.

    Attributes:
        module: a causal LM; its mode is restored after use.
        tokenizer: decodes what was generated and tokenises choices.
        renderer: writes prompts and references.
        settings: the `generate` block of the recipe.
        seed: decides the draws when the temperature is above 0, together with the record's id.
    """

    module: Any
    tokenizer: Any
    renderer: ReferenceRenderer
    settings: GenerationSettings
    seed: int = 0


@dataclass(frozen=True)
class Question:
    """A record, its reference answer, and the metric that scores answers to it.

    `options` are the continuations that a metric of choices compares, of which the reference is one; empty otherwise.
    """

    record: Record
    reference: str
    metric: Metric
    options: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """How messages name the record."""
        return f"Record {self.record.id} ({self.record.origin})"

    def measure(self, prediction: str) -> float:
        """The metric's score of a prediction, as `measure` says."""
        return measure(self.metric, prediction, self.record, self.reference)


@dataclass(frozen=True)
class Reply:
    """The model's answer to one question, scored.

    Attributes:
        prediction: the text; empty where the model only gave log-probabilities.
        score: what the question's metric says of the answer.
        finish: "stop" or "length"; None where nothing was generated.
        weight: of the score in `Metric.combine`.
        generated: tokens that the model wrote.
    """

    prediction: str
    score: float
    finish: str | None = None
    weight: int = 1
    generated: int = 0


class Answering(ABC):
    """One way in which a model answers questions. Verbs: `refuse` before training, `replies` after it."""

    NEED: ClassVar[str]

    def refuse(self, question: Question, renderer: ReferenceRenderer) -> None:
        """Raise EvaluationError, naming the record, where the question cannot be asked."""
        return

    @abstractmethod
    def replies(self, model: EvaluatedModel, questions: Sequence[Question], finished: Finished) -> Iterator[Reply]:
        """One reply per question, in order; `finished` is called with the number of questions answered so far."""


class Generation(Answering):
    """The model writes the answer."""

    NEED = "generation"

    def refuse(self, question: Question, renderer: ReferenceRenderer) -> None:
        if question.record.shape == "text":
            renderer.prompt(question.record)  # raises: running text has no prompt to answer
        question.measure(question.reference)

    def replies(self, model: EvaluatedModel, questions: Sequence[Question], finished: Finished) -> Iterator[Reply]:
        ends, sampling = model.renderer.end_ids, model.settings.sampling()
        requests = []
        for question in questions:
            name = question.record.id
            # Keyed by the record: neither the order nor the other records of the set change what is drawn.
            requests.append(Request(model.renderer.prompt(question.record), name, seed=hash64(model.seed, name)))
        sampler = NativeSampler(model.module, ends, model.tokenizer, model.settings.rows)

        def decode(ids: Sequence[int]) -> str:
            return model.tokenizer.decode(ids, skip_special_tokens=True)

        for question, trajectory in zip(questions, sampler(requests, sampling, finished), strict=True):
            text = answer_text(trajectory.ids, ends, decode, sampling.stop)
            yield Reply(text, question.measure(text), trajectory.finish, generated=len(trajectory.ids))


class Choosing(Answering):
    """The metric picks one of the record's `choices` by their log-probabilities."""

    NEED = "choices"

    def refuse(self, question: Question, renderer: ReferenceRenderer) -> None:
        _choices(question)

    def replies(self, model: EvaluatedModel, questions: Sequence[Question], finished: Finished) -> Iterator[Reply]:
        choices = [_choices(question) for question in questions]
        tokens = []
        for options in choices:
            tokens.append([model.tokenizer(option, add_special_tokens=False)["input_ids"] for option in options])
        logprobs = choice_logprobs(
            model.module,
            [model.renderer.prompt(question.record) for question in questions],
            tokens,
            batch=model.settings.rows,
            progress=finished,
            records=[question.record.id for question in questions],
        )
        for question, options, ids, sums in zip(questions, choices, tokens, logprobs, strict=True):
            refuse_infinite(sum(sums), question.where)
            picked = options[question.metric.pick(sums, options, [len(option) for option in ids])]
            yield Reply(picked, question.measure(picked))


class Likelihood(Answering):
    """The metric scores the log-probability of the reference."""

    NEED = "logprobs"

    def replies(self, model: EvaluatedModel, questions: Sequence[Question], finished: Finished) -> Iterator[Reply]:
        rows = [model.renderer.render(question.record) for question in questions]
        for question, row in zip(questions, rows, strict=True):
            if not row.targets:
                raise EvaluationError(f"{question.where} has no target token to score.")
        sums = sequence_logprobs(model.module, rows, progress=finished)
        for question, (total, targets) in zip(questions, sums, strict=True):
            refuse_infinite(total, question.where)
            yield Reply("", question.metric.of_logprobs(total, targets), weight=targets)


class Comparing(Answering):
    """The metric compares the log-probabilities of a chosen and a rejected answer."""

    NEED = "pairs"

    def refuse(self, question: Question, renderer: ReferenceRenderer) -> None:
        if question.record.shape != "preference":
            raise EvaluationError(
                f"{question.where} is no pair of a chosen and a rejected answer.", "Choose another `evaluate.metric`."
            )

    def replies(self, model: EvaluatedModel, questions: Sequence[Question], finished: Finished) -> Iterator[Reply]:
        rows = []
        for question in questions:
            self.refuse(question, model.renderer)
            rows += model.renderer.explain(question.record).rows
        # Each question has two rows, the chosen answer first.
        sums = sequence_logprobs(model.module, rows, progress=lambda done: finished(done // 2))
        for question, chosen, rejected in zip(questions, sums[::2], sums[1::2], strict=True):
            refuse_infinite(chosen[0] + rejected[0], question.where)
            yield Reply("", question.metric.of_pair(chosen, rejected))


WAYS: tuple[Answering, ...] = (Generation(), Choosing(), Likelihood(), Comparing())


def measure(metric: Metric, prediction: str, record: Record, reference: str) -> float:
    """`metric.score` of a prediction; whatever goes wrong names the record.

    Raises:
        EvaluationError: the metric raised, or its score is not a number in [0,1].
    """
    where = f"Record {record.id} ({record.origin}): metric `{metric.kind}`"
    try:
        score = float(metric.score(prediction, record, reference))
    except (LuthierError, ValueError) as error:
        raise EvaluationError(
            f"{where}: {error}", "Correct the record, or choose another `evaluate.metric`."
        ) from error
    except Exception as error:
        raise EvaluationError(f"{where} failed: {type(error).__name__}: {error}") from error
    if not 0 <= score <= 1:  # NaN too
        raise EvaluationError(f"{where} gave {score}; a score is a number from 0 to 1.")
    return score


def refuse_infinite(logprob: float, where: str) -> None:
    """Raise EvaluationError for a log-probability that is not finite: scores made of it would rank models by chance."""
    if not math.isfinite(logprob):
        raise EvaluationError(
            f"{where}: the model gives it a log-probability of {logprob}.",
            "Its weights or activations are not finite; was the learning rate too high?",
        )


def _choices(question: Question) -> list[str]:
    """The continuations that are compared, one of which is the reference."""
    if question.options.count(question.reference) != 1:
        choices = question.record.fields.get("choices")
        raise EvaluationError(
            f"{question.where}: `choices` must be two or more texts, and the reference names one of them by its text, "
            f"letter or index; found {question.reference[:80]!r} and {choices!r}.",
            "Correct the record, or choose another `evaluate.metric`.",
        )
    return list(question.options)
