"""The columns of the data that the parts of a recipe read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.parts import PACKAGE, Part, build
from luthier.recipe.resolve import Recipe
from luthier.recipe.stages import flat, stages_of
from luthier.types import EVERY


def read_columns(recipe: Recipe) -> tuple[str, ...]:
    """The columns that the recipe's parts read of a record besides question and answer, as their `fields` say.

    EVERY is among them for a part of the user's that reads columns without saying which.
    """
    names: dict[str, None] = {}
    for part in _parts(recipe):
        names.update(dict.fromkeys(_fields(part)))
    return tuple(names)


def _parts(recipe: Recipe) -> Iterator[Part]:
    """All parts of a recipe, those of its steps included."""
    yield from recipe.build_parts().values()
    if recipe.settings.steps is None:
        return
    for stage in flat(stages_of(recipe)):
        yield from stage.recipe.build_parts().values()
        for _, slot, spec in stage.verb.named_parts():
            yield build(slot, spec, recipe.base)


def _fields(part: Part) -> Iterator[str]:
    # A generated data set makes columns and reads none.
    if getattr(part, "SLOT", "") == "dataset":
        return
    yield from (EVERY,) if _is_silent(part) else part.fields
    for name in type(part).model_fields:
        yield from _inner(getattr(part, name))


def _inner(option: Any) -> Iterator[str]:
    if isinstance(option, Part):
        yield from _fields(option)
    elif isinstance(option, list | tuple):
        for member in option:
            yield from _inner(member)


def _is_silent(part: Part) -> bool:
    """Whether a part of a user's file names no columns, though its text mentions those of records."""
    if type(part).fields is not Part.fields:
        return False
    file = getattr(sys.modules[type(part).__module__], "__file__", None)
    if file is None or PACKAGE in Path(file).parents:
        return False
    return ".fields" in Path(file).read_text(encoding="utf-8")
