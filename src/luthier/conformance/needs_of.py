"""What an objective is tried on by what it NEEDS: the file of that name in `needs/` gives rows and further checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from luthier import parts
from luthier.conformance.tiny import RECORDS, tiny_model_of, tiny_rows
from luthier.errors import RecipeError
from luthier.objectives.base import Objective
from luthier.objectives.sum import judgement_of
from luthier.types import Row

FOLDER = Path(__file__).parent / "needs"


def rows_for(objective: Objective, targets: bool = True) -> list[Row]:
    """Tiny data of the kind that the objective NEEDS.

    Raises:
        RecipeError: it needs something that no file in `needs/` makes.
    """
    needed = judgement_of(objective)
    if needed:
        return _file_of(needed).rows(RECORDS, 0, targets)
    return tiny_model_of(objective).rows(RECORDS, 0) if targets else tiny_rows(targets=False)


def checks_of_need(objective: Objective) -> Iterator[tuple[str, Callable[[], None]]]:
    """Further checks of objectives that read one form of judged answers; most forms have none."""
    needed = judgement_of(objective)
    checks = getattr(_file_of(needed), "checks", None) if needed else None
    if checks is not None:
        yield from checks(objective)


def _file_of(needed: str) -> Any:
    if not (FOLDER / f"{needed}.py").is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("[!_]*.py")))
        raise RecipeError(f"NEEDS names `{needed}`, of which there are no rows to try it on.", f"Known: {known}.")
    return parts.lazy(f"luthier.conformance.needs.{needed}")
