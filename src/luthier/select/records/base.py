"""The family of subsets: which records, or which answers to them, a data set keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from luthier.errors import RecipeError
from luthier.parts import Part
from luthier.types import Candidate

Columns = Mapping[str, Mapping[str, Any]]
"""Name → id of the candidate's row → value or array."""


class Subset(Part):
    """Chooses among candidates once, before training. Verb: `choose`.

    READS names the columns it needs, such as `logprobs` (per token, under the step's model).
    """

    SLOT: ClassVar[str] = "subset"
    READS: ClassVar[tuple[str, ...]] = ()

    def choose(self, candidates: Sequence[Candidate], columns: Columns, seed: int) -> list[int]:
        """Places of the candidates to keep, in the order in which they are left."""
        raise RecipeError(f"{type(self).__name__} does not define `choose(self, candidates, columns, seed)`.")


def by_record(candidates: Sequence[Candidate]) -> dict[str, list[int]]:
    """Places of the candidates of each record, in order."""
    found: dict[str, list[int]] = {}
    for place, candidate in enumerate(candidates):
        found.setdefault(candidate.record.id, []).append(place)
    return found
