"""Rows and further checks of an objective by what it NEEDS: those of the file of that name in `needs/`."""

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
    """Tiny rows of the form that the objective NEEDS, RECORDS records.

    Args:
        targets: False sets the weight of every token to 0.

    Raises:
        RecipeError: `needs/` has no file for that form.
    """
    form = judgement_of(objective)
    if form:
        return _module_of(form).rows(RECORDS, 0, targets)
    return tiny_model_of(objective).rows(RECORDS, 0) if targets else tiny_rows(targets=False)


def checks_of_need(objective: Objective) -> Iterator[tuple[str, Callable[[], None]]]:
    """Further checks of objectives that read one form of judged answers; most forms have none."""
    form = judgement_of(objective)
    checks = getattr(_module_of(form), "checks", None) if form else None
    if checks is not None:
        yield from checks(objective)


def _module_of(form: str) -> Any:
    if not (FOLDER / f"{form}.py").is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("[!_]*.py")))
        raise RecipeError(f"NEEDS names `{form}`, for which `conformance/needs/` has no rows.", f"Known: {known}.")
    return parts.lazy(f"luthier.conformance.needs.{form}")
