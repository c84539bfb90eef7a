"""The choice of a metric (`metric: auto`) by the shape of the records and references."""

from __future__ import annotations

import re
from collections.abc import Sequence

from luthier.data.parsers import parse_json
from luthier.errors import DataError
from luthier.types import Record

LABELS = 20
"""Most different references that count as labels of a classification."""
LABEL_WORDS = 6
NEARLY = 0.9
"""Share of references of a shape from which the reason names the first that is not of it: it may be a broken line."""
_ENDS_IN_NUMBER = re.compile(r"(^|[\s$€£=(:])[-+]?\d[\d.,]*\d?\s*[%°)]?\s*\.?\s*$")


def choose_metric(records: Sequence[Record], references: Sequence[str]) -> tuple[str, str]:
    """The metric for these records, and the reason as a clause.

    The first that applies: every record has `choices` → choice; every record is a pair of a chosen and a rejected
    answer → preference_accuracy; every reference is a JSON object or list → json_fields; every reference ends in a
    number or holds `####` → number; few different short references → exact; otherwise chrf.

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
    shapes = {
        "json_fields": ("are JSON objects or lists", [_is_json(text) for text in references]),
        "number": ("end in a number", [_is_numeric(text) for text in references]),
    }
    for name, (words, fits) in shapes.items():
        if all(fits):
            return name, f"all {count} references {words}"
    labels = {" ".join(text.split()).casefold() for text in references}
    short = all(len(label.split()) <= LABEL_WORDS for label in labels)
    if short and len(labels) <= min(LABELS, count // 2):
        return "exact", f"{count} references are {len(labels)} different labels"
    return "chrf", f"{count} references are open text{_nearly(records, shapes)}"


def _is_json(text: str) -> bool:
    return text.strip()[:1] in ("{", "[") and isinstance(parse_json(text), dict | list)


def _is_numeric(text: str) -> bool:
    return "####" in text or _ENDS_IN_NUMBER.search(text) is not None


def _nearly(records: Sequence[Record], shapes: dict[str, tuple[str, list[bool]]]) -> str:
    """A remark on the first shape that most references, but not all, have; empty if there is none."""
    for name, (words, fits) in shapes.items():
        if sum(fits) >= NEARLY * len(fits):
            first = records[fits.index(False)]
            return f" ({sum(fits)} {words}, but {first.origin} does not; set `evaluate.metric: {name}` if it should)"
    return ""
