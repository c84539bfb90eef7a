"""JSON validity."""

from __future__ import annotations

from typing import ClassVar

from luthier.data.parsers import parse_json
from luthier.evals.base import Metric
from luthier.types import Record


class JsonValid(Metric):
    """1 if the answer holds a valid JSON object or list with any content, else 0."""

    NEEDS: ClassVar[tuple[str, ...]] = ("generation",)

    def score(self, prediction: str, record: Record, reference: str) -> float:
        return float(parse_json(prediction) is not None)
