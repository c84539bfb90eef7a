"""The metric of a recipe's held-out records: the choice, its reason, and worked examples of right and wrong answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luthier.data.prepare import Prepared
from luthier.data.render import Renderer
from luthier.data.shapes import label_of
from luthier.errors import LuthierError
from luthier.evals.answering import measure
from luthier.evals.base import Metric
from luthier.evals.evaluate import assign_metrics
from luthier.modalities.language.workspace import set_of
from luthier.recipe import Recipe
from luthier.types import Record

EXAMPLES = 3
WAYS = {
    "choices": "the most likely of the record's `choices` counts as the answer",
    "logprobs": "by the likelihood of the reference; no answer is generated",
    "pairs": "by whether the chosen answer is likelier than the rejected one",
}


@dataclass(frozen=True)
class WorkedExample:
    """A reference, another answer to the same question, and the score of each; `right`: whether it counts as right."""

    reference: str
    score: float
    answer: str
    answer_score: float
    right: bool


@dataclass(frozen=True)
class MetricChoice:
    """How the held-out records are scored.

    Attributes:
        name: the metric, or several with their numbers of records.
        reason: who chose it, and why.
        way: how answers are scored if no text is compared; empty otherwise.
        examples: worked on the records' references.
    """

    name: str
    reason: str
    way: str
    examples: tuple[WorkedExample, ...]

    @property
    def confuses(self) -> bool:
        """Whether the reference of another record counts as right, although its text is another."""
        return any(example.right for example in self.examples)


def metric_choice(recipe: Recipe, prepared: Prepared, renderer: Renderer) -> Iterator[MetricChoice]:
    """The metric of the test records, or of those of validation if there is no test."""
    for name in ("target", "validation"):
        records, written = set_of(recipe, prepared, name)
        records = sorted((record for record in records if label_of(record) is not False), key=lambda record: record.id)
        if records:
            references = {record.id: renderer.reference(record) for record in records}
            metrics, reason = assign_metrics(records, references, written, recipe.base)
            kinds = Counter(metric.kind for metric in metrics.values())
            several = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
            names = several if len(kinds) > 1 else next(iter(kinds))
            metric = metrics[records[0].id]
            way = next((WAYS[need] for need in metric.NEEDS if need in WAYS), "")
            same = [record for record in records if metrics[record.id] is metric]
            examples = () if way else tuple(_examples(metric, same, [references[record.id] for record in same]))
            yield MetricChoice(names, reason, way, examples)
            return


def _examples(metric: Metric, records: Sequence[Record], references: Sequence[str]) -> Iterator[WorkedExample]:
    """Three records with their reference as the answer, and with the nearest other reference."""
    for index in range(min(EXAMPLES, len(records))):
        record, reference = records[index], references[index]
        others = [other for other in references[:200] if other.strip() != reference.strip()]
        # Most like the reference: what a metric confuses differs little.
        answer = max(others, key=lambda other: _common(reference, other), default="")
        try:
            score, other_score = (measure(metric, text, record, reference) for text in (reference, answer))
        except LuthierError:  # `refuse_unscorable_sets` has tried the references; another text may not be one
            continue
        yield WorkedExample(reference, score, answer, other_score, other_score >= metric.RIGHT)


def _common(left: str, right: str) -> int:
    return len({*left.split()} & {*right.split()}) - abs(len(left) - len(right)) // 8
