"""Evaluate a model on records: generate or score, then measure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from luthier.data.shapes import label_of
from luthier.errors import LuthierError, RecipeError
from luthier.evals.auto import choose_metric
from luthier.evals.base import Evaluation, EvaluationError, Item, Metric
from luthier.keyed import hash64
from luthier.parts import build
from luthier.sampling.native import NativeSampler
from luthier.sampling.scoring import choice_logprobs, sequence_logprobs
from luthier.sampling.text import answer_text
from luthier.types import Record, Request, Row, Sampling

Progress = Callable[[int, int], None]


class ReferenceRenderer(Protocol):
    """What evaluating needs of data's renderer."""

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


@dataclass
class _Work:
    """What the scoring functions share, and what they have found so far."""

    module: Any
    tokenizer: Any
    renderer: ReferenceRenderer
    settings: GenerationSettings
    seed: int
    references: dict[str, str]
    metrics: dict[str, Metric]
    report: Callable[[int], None]
    items: list[Item] = field(default_factory=list)
    weights: dict[str, int] = field(default_factory=dict)
    generated: int = 0

    def add(self, record: Record, prediction: str, finish: str | None, value: float | None = None) -> None:
        """Score one answer (or take `value` as its score) and keep the item."""
        metric, reference = self.metrics[record.id], self.references[record.id]
        if value is None:
            value = measure(metric, prediction, record, reference)
        prompt = self.renderer.prompt_text(record)
        right = value >= metric.RIGHT
        self.items.append(Item(record.id, prompt, reference, prediction, value, finish, metric.kind, right))


def evaluate(
    module: Any,
    tokenizer: Any,
    renderer: ReferenceRenderer,
    records: Sequence[Record],
    metric: Any,
    settings: GenerationSettings,
    progress: Progress | None = None,
    *,
    base: Path | None = None,
    seed: int = 0,
) -> Evaluation:
    """Answer and score records; the result does not depend on their order.

    A record's own `metric` column (a metric's name or block) comes before `metric`; with `auto`,
    records that have `choices` are scored as multiple choice and the others by what their data look like.

    Args:
        module: a causal LM; its mode is restored.
        tokenizer: its tokenizer, to read what was generated.
        renderer: writes prompts and references.
        records: the set, ids unique; those whose own answer is labelled bad are left out, having no reference.
        metric: a Metric, or what a recipe writes: `auto`, a name, a block, a file.
        settings: the `generate` block.
        progress: called with (records done, records in all).
        base: folder that part files in `metric` are relative to.
        seed: of the draws when the temperature is above 0, together with the record's id.

    Raises:
        EvaluationError: no records, or one that cannot be scored; names the record.
    """
    ordered = _scorable(records)
    references = {record.id: renderer.reference(record) for record in ordered}
    metrics, reason = assign_metrics(ordered, references, metric, base)
    counts = {"before": 0}

    def report(done: int) -> None:
        if progress is not None:
            progress(counts["before"] + done, len(ordered))

    work = _Work(module, tokenizer, renderer, settings, seed, references, metrics, report)
    for need, answer in (("generation", _generate), ("choices", _choose), ("logprobs", _weigh), ("pairs", _compare)):
        chosen = [record for record in ordered if need in metrics[record.id].NEEDS]
        if chosen:
            answer(work, chosen)
        counts["before"] += len(chosen)
    return _summary(work, reason)


def refuse_unscorable(
    records: Sequence[Record], renderer: ReferenceRenderer, metric: Any, base: Path | None = None
) -> None:
    """Find before training what `evaluate` would find after it: each record's gold answer is measured against itself.

    Raises:
        EvaluationError: no records, or one that cannot be scored; names the record.
    """
    ordered = _scorable(records)
    references = {record.id: renderer.reference(record) for record in ordered}
    metrics, _ = assign_metrics(ordered, references, metric, base)
    for record in ordered:
        chosen, reference = metrics[record.id], references[record.id]
        if "generation" in chosen.NEEDS:
            if record.shape == "text":
                renderer.prompt(record)  # which says why there is nothing to answer
            measure(chosen, reference, record, reference)
        if "choices" in chosen.NEEDS:
            _choices(record, reference)
        if "pairs" in chosen.NEEDS:
            _refuse_unpaired(record)


def _scorable(records: Sequence[Record]) -> list[Record]:
    ordered = sorted((one for one in records if label_of(one) is not False), key=lambda record: record.id)
    if not ordered:
        raise EvaluationError("There are no records to evaluate.", "Check the source of the evaluation set.")
    return ordered


def assign_metrics(
    records: Sequence[Record], references: Mapping[str, str], metric: Any, base: Path | None
) -> tuple[dict[str, Metric], str]:
    """The metric of each record by id, and who chose it."""
    own = {record.id: record.fields["metric"] for record in records if record.fields.get("metric") is not None}
    if metric == "auto":
        own |= {r.id: "choice" for r in records if r.fields.get("choices") and r.id not in own}
    rest = [record for record in records if record.id not in own]
    reason = "set in the recipe" if rest else "each record names its metric or has `choices`"
    if metric == "auto" and rest:
        metric, reason = choose_metric(rest, [references[record.id] for record in rest])
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


def measure(metric: Metric, prediction: str, record: Record, reference: str) -> float:
    """`metric.score`, with the record named in whatever goes wrong.

    Raises:
        EvaluationError: the metric raised, or its score is not a number in [0,1].
    """
    where = f"Record {record.id} ({record.origin}): metric `{metric.kind}`"
    try:
        value = float(metric.score(prediction, record, reference))
    except (LuthierError, ValueError) as error:
        raise EvaluationError(
            f"{where}: {error}", "Correct the record, or choose another `evaluate.metric`."
        ) from error
    except Exception as error:
        raise EvaluationError(f"{where} failed: {type(error).__name__}: {error}") from error
    if not 0 <= value <= 1:
        raise EvaluationError(f"{where} gave {value}; a score is a number from 0 to 1.")
    return value


def perplexity(module: Any, rows: Sequence[Row], progress: Progress | None = None) -> float:
    """Exponential of the mean negative log-probability over all targets of tokenised rows.

    Raises:
        EvaluationError: the rows have no target.
    """
    found = sequence_logprobs(
        module, rows, progress=None if progress is None else lambda done: progress(done, len(rows))
    )
    targets = sum(count for _, count in found)
    if not targets:
        raise EvaluationError(
            "There is no target token to compute a perplexity from.", "Check the mask: `luthier check` shows it."
        )
    for row, (total, _) in zip(rows, found, strict=True):
        _check_finite(total, f"Record {row.id}")
    return math.exp(-sum(total for total, _ in found) / targets)


def _check_finite(value: float, where: str) -> None:
    if not math.isfinite(value):
        raise EvaluationError(
            f"{where}: the model gives it a log-probability of {value}.",
            "Its weights or activations are not finite; was the learning rate too high?",
        )


def _generate(work: _Work, records: list[Record]) -> None:
    ends, sampling = work.renderer.end_ids, work.settings.sampling()
    requests = [Request(work.renderer.prompt(one), one.id, seed=hash64(work.seed, one.id)) for one in records]
    sampler = NativeSampler(work.module, ends, work.tokenizer, work.settings.rows)

    def decode(ids: Sequence[int]) -> str:
        return work.tokenizer.decode(ids, skip_special_tokens=True)

    for record, trajectory in zip(records, sampler(requests, sampling, work.report), strict=True):
        work.generated += len(trajectory.ids)
        work.add(record, answer_text(trajectory.ids, ends, decode, sampling.stop), trajectory.finish)


def _choose(work: _Work, records: list[Record]) -> None:
    choices = [_choices(record, work.references[record.id]) for record in records]
    tokens = [
        [work.tokenizer(choice, add_special_tokens=False)["input_ids"] for choice in options] for options in choices
    ]
    logprobs = choice_logprobs(
        work.module,
        [work.renderer.prompt(record) for record in records],
        tokens,
        batch=work.settings.rows,
        progress=work.report,
        records=[record.id for record in records],
    )
    for record, options, ids, values in zip(records, choices, tokens, logprobs, strict=True):
        _check_finite(sum(values), f"Record {record.id} ({record.origin})")
        picked = work.metrics[record.id].pick(values, options, [len(one) for one in ids])
        work.add(record, options[picked], None)


def _choices(record: Record, reference: str) -> list[str]:
    choices = record.fields.get("choices")
    listed = choices if isinstance(choices, list) and all(isinstance(c, str) and c for c in choices) else []
    if len(listed) < 2 or [choice.strip() for choice in listed].count(reference.strip()) != 1:
        raise EvaluationError(
            f"Record {record.id} ({record.origin}): `choices` must be two or more texts, one of them the"
            f" reference {reference[:80]!r}; found {choices!r}.",
            "Correct the record, or choose another `evaluate.metric`.",
        )
    return listed


def _weigh(work: _Work, records: list[Record]) -> None:
    rows = [work.renderer.render(record) for record in records]
    for record, row in zip(records, rows, strict=True):
        if not row.targets:
            raise EvaluationError(f"Record {record.id} ({record.origin}) has no target token to score.")
    for record, (total, targets) in zip(
        records, sequence_logprobs(work.module, rows, progress=work.report), strict=True
    ):
        _check_finite(total, f"Record {record.id} ({record.origin})")
        work.weights[record.id] = targets
        work.add(record, "", None, work.metrics[record.id].of_logprobs(total, targets))


def _compare(work: _Work, records: list[Record]) -> None:
    rows = []
    for record in records:
        _refuse_unpaired(record)
        rows += work.renderer.explain(record).rows
    found = sequence_logprobs(work.module, rows, progress=lambda done: work.report(done // 2))
    for record, chosen, rejected in zip(records, found[::2], found[1::2], strict=True):
        _check_finite(chosen[0] + rejected[0], f"Record {record.id} ({record.origin})")
        work.add(record, "", None, work.metrics[record.id].of_pair(chosen, rejected))


def _refuse_unpaired(record: Record) -> None:
    if record.shape != "preference":
        raise EvaluationError(
            f"Record {record.id} ({record.origin}) is no pair of a chosen and a rejected answer.",
            "Choose another `evaluate.metric`.",
        )


def _summary(work: _Work, reason: str) -> Evaluation:
    items = sorted(work.items, key=lambda item: item.id)
    kinds = {item.metric for item in items}
    first = work.metrics[items[0].id]
    if len(kinds) > 1 and not all(work.metrics[item.id].RANKS for item in items):
        odd = next(item for item in items if not work.metrics[item.id].RANKS)
        raise EvaluationError(
            f"Record {odd.id}: `{odd.metric}` cannot be averaged with other metrics.",
            "Evaluate these records as a set of their own.",
        )
    scores, weights = [item.score for item in items], [work.weights.get(item.id, 1) for item in items]
    mean = first.combine(scores, weights) if len(kinds) == 1 else sum(scores) / len(scores)
    name = first.kind if len(kinds) == 1 else "mixed"
    return Evaluation(items, mean, name, reason, work.generated, first.RANKS)
