"""The base class of subsets, which choose the records, or answers to them, that a data set keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from luthier.errors import RecipeError
from luthier.parts import Part
from luthier.types import Candidate

Columns = Mapping[str, Mapping[str, Any]]
"""{column: {id of the candidate's row: value or array}}."""


class Subset(Part):
    """Chooses among candidates once, before training. Method to write: `choose`.

    READS: the columns that it needs, such as `logprobs` (per token, under the step's model).
    """

    SLOT: ClassVar[str] = "subset"
    READS: ClassVar[tuple[str, ...]] = ()

    def choose(self, candidates: Sequence[Candidate], columns: Columns, seed: int) -> list[int]:
        """Indices of the candidates to keep, in the order of the resulting data set.

        A candidate is a record with one answer as tokens. The choice must not depend on the order of the candidates,
        except among equals.

        Raises:
            RecipeError: the class does not define it.
        """
        raise RecipeError(f"{type(self).__name__} does not define `choose(self, candidates, columns, seed)`.")


def by_record(candidates: Sequence[Candidate]) -> dict[str, list[int]]:
    """{record id: indices of its candidates}, in order."""
    indices: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        indices.setdefault(candidate.record.id, []).append(index)
    return indices
