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
    """Share of the reference's leaf fields that the answer has right; an extra field counts as a wrong one.

    score = right / (leaves of the reference + leaves that only the answer has). Lists are compared by index, numbers
    by value (to nine digits), strings without surrounding space. An answer that is not JSON scores 0. `strict` gives 1
    only if every field is right and none is extra, else 0.
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
        gold_leaves, leaves = dict(_leaves(gold)), dict(_leaves(parse_json(prediction)))
        right = sum(path in leaves and self._same(leaf, leaves[path]) for path, leaf in gold_leaves.items())
        extra = sum(path not in gold_leaves for path in leaves)
        share = right / (len(gold_leaves) + extra)
        return float(share == 1) if self.strict else share

    def _same(self, gold: Any, answer: Any) -> bool:
        if isinstance(gold, bool) or isinstance(answer, bool):
            return gold is answer  # True == 1 in Python, not in JSON
        if isinstance(gold, int | float) and isinstance(answer, int | float):
            exact_gold, exact_answer = Fraction(gold), Fraction(answer)  # a model may write integers beyond any float
            return abs(exact_gold - exact_answer) <= abs(exact_gold) * CLOSE
        if isinstance(gold, str) and isinstance(answer, str):
            gold, answer = gold.strip(), answer.strip()
            return gold.casefold() == answer.casefold() if self.ignore_case else gold == answer
        return type(gold) is type(answer) and gold == answer


def _leaves(document: Any) -> Iterator[tuple[Path, Any]]:
    """Each leaf of a JSON document with the keys that lead to it; an empty object or list is a leaf.

    A stack replaces recursion, which deeply nested answers would exhaust.
    """
    stack: list[tuple[Path, Any]] = [((), document)]
    while stack:
        path, node = stack.pop()
        if isinstance(node, dict) and node:
            stack += [((*path, key), child) for key, child in node.items()]
        elif isinstance(node, list) and node:
            stack += [((*path, index), child) for index, child in enumerate(node)]
        else:
            yield path, node
