"""The choice of a metric (`metric: auto`) by the shape of the records and references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from luthier.errors import DataError
from luthier.evals.kinds import EXACT_KINDS, WORDS, has_leading_zero, kind_of
from luthier.types import Record

LABELS = 20
"""Most different references that count as labels of a classification."""
LABEL_WORDS = 6
MOST = 0.9
"""Share of references of a kind from which the kind decides; the others are scored by `metric_of_odd`."""
_METRICS = {"json": "json_fields", "math": "math", "number": "number", **dict.fromkeys(EXACT_KINDS, "exact")}


def choose_metric(records: Sequence[Record], references: Sequence[str]) -> tuple[str, str]:
    """The metric for these records, and the reason as a clause.

    The first that applies: every record has `choices` → choice; every record is a pair of a chosen and a rejected
    answer → preference_accuracy; at least MOST of the references are JSON → json_fields, numbers or formulas → number
    or math, dates, times, codes, titles and their like → exact; few different short references → exact; otherwise chrf.

    Raises:
        DataError: there are no records.
    """
    if not records:
        raise DataError("There are no records to choose a metric for.", "Check the source of the evaluation set.")
    count = len(records)
    # In this order: a record with choices may also have a number as its reference.
    if all("choices" in record.fields for record in records):
        return "choice", f"all {count} records have `choices`"
    if all(record.shape == "preference" for record in records):
        return "preference_accuracy", f"all {count} records are pairs of a chosen and a rejected answer"
    kinds = _kinds(references)
    metric, share = _by_kind(kinds)
    if share >= MOST * count:
        return metric, _reason(metric, kinds, records)
    labels = {" ".join(text.split()).casefold() for text in references}
    short = all(len(label.split()) <= LABEL_WORDS for label in labels)
    if short and len(labels) <= min(LABELS, count // 2):
        return "exact", f"{count} references are {len(labels)} different labels"
    return "chrf", f"{count} references are open text{_nearly(metric, kinds, records)}"


def metric_of_odd(metric: str, reference: str) -> str:
    """The metric of one reference where `metric` was chosen for the whole: its own if that cannot score it."""
    kind = kind_of(reference)
    if metric == "math" and kind == "number":
        return "math"
    if metric not in ("json_fields", "math", "number"):
        return metric
    own = _METRICS.get(kind, "exact")
    return own if own in ("json_fields", "math", "number") else "exact"


def _kinds(references: Sequence[str]) -> list[str]:
    kinds = [kind_of(text) for text in references]
    # Numbers of things, such as postcodes, betray themselves by a 0 in front of some of them.
    if any(map(has_leading_zero, references)) and all(text.strip().isdigit() for text in references):
        return ["identifier"] * len(kinds)
    return kinds


def _by_kind(kinds: Sequence[str]) -> tuple[str, int]:
    """The metric that fits most references, and how many it fits."""
    counts = Counter(_METRICS.get(kind, "") for kind in kinds)
    counts.pop("", None)
    if not counts:
        return "", 0
    # Formulas among numbers: `math` reads both, and a few odd formulas do not decide for all.
    if counts["math"] > (1 - MOST) * len(kinds):
        counts["math"] += counts.pop("number", 0)
    elif counts["number"]:
        counts["number"] += counts.pop("math", 0)
    metric = max(counts, key=lambda name: counts[name])
    return metric, counts[metric]


def _reason(metric: str, kinds: Sequence[str], records: Sequence[Record]) -> str:
    """How many references are of which kind, and how the others are scored."""
    fitting = [kind for kind in kinds if _METRICS.get(kind) == metric or (metric == "math" and kind == "number")]
    names = [WORDS[kind] for kind, _ in Counter(fitting).most_common(2)]
    number = len(fitting)
    reason = f"{'all ' if number == len(kinds) else ''}{number} of {len(kinds)} references {' or '.join(names)}"
    reason = reason.replace(f"all {number} of {number}", f"all {number}")
    if metric == "exact":
        return f"{reason}, of which a similar text is another answer"
    if number == len(kinds):
        return reason
    odd = next(index for index, kind in enumerate(kinds) if kind not in fitting)
    return f"{reason}; the others, such as {records[odd].origin}, are scored by a metric of their own"


def _nearly(metric: str, kinds: Sequence[str], records: Sequence[Record]) -> str:
    """A remark on the kind of more than half of the references; empty if there is none."""
    fitting = [_METRICS.get(kind) == metric for kind in kinds]
    if sum(fitting) <= len(kinds) / 2:
        return ""
    first = records[fitting.index(False)]
    words = WORDS[kinds[fitting.index(True)]]
    return f" ({sum(fitting)} {words}, but {first.origin} does not; set `evaluate.metric: {metric}` if it should)"
