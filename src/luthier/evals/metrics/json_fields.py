"""Fields of a JSON answer."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, ClassVar

from pydantic import Field

from luthier.data.parsers import parse_json
from luthier.evals.base import Metric
from luthier.types import Record

CLOSE = Fraction(1, 10**9)
Path = tuple[str | int, ...]


class JsonFields(Metric):
    """Share of the reference's leaf fields that the answer has right; a field too many counts as one wrong.

    score = right / (leaves of the reference + leaves that only the answer has). Lists are compared by
    index, numbers by value (to nine digits), strings without surrounding space. An answer that is not JSON scores 0.
    `strict` gives 1 only when every field is right and none is extra.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("generation",)
    SETTINGS: ClassVar = ({}, {"ignore_case": True}, {"strict": True})

    ignore_case: bool = Field(
        False,
        description="Whether text fields that differ only in upper and lower case count as equal; keys never do.",
    )
    strict: bool = Field(
        False,
        description="Whether the score is 1 only if every field is right and none is extra, and else 0. False gives "
        "the share of right fields.",
    )

    def score(self, prediction: str, record: Record, reference: str) -> float:
        gold = parse_json(reference)
        if gold is None:
            raise ValueError(f"its reference is not JSON: {reference[:80]!r}")
        wanted, found = dict(_leaves(gold)), dict(_leaves(parse_json(prediction)))
        right = sum(path in found and self._same(value, found[path]) for path, value in wanted.items())
        extra = sum(path not in wanted for path in found)
        share = right / (len(wanted) + extra)
        return float(share == 1) if self.strict else share

    def _same(self, gold: Any, found: Any) -> bool:
        if isinstance(gold, bool) or isinstance(found, bool):
            return gold is found
        if isinstance(gold, int | float) and isinstance(found, int | float):
            exact = Fraction(gold), Fraction(found)  # floats overflow on what a model may write
            return abs(exact[0] - exact[1]) <= abs(exact[0]) * CLOSE
        if isinstance(gold, str) and isinstance(found, str):
            pair = (gold.strip(), found.strip())
            return pair[0].casefold() == pair[1].casefold() if self.ignore_case else pair[0] == pair[1]
        return type(gold) is type(found) and gold == found


def _leaves(value: Any) -> Iterator[tuple[Path, Any]]:
    """Each value that holds no others, with the keys that lead to it; an empty object or list is a leaf."""
    open_values: list[tuple[Path, Any]] = [((), value)]
    while open_values:
        path, value = open_values.pop()
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        if inner and value:
            open_values += [((*path, key), one) for key, one in inner]
        else:
            yield path, value
