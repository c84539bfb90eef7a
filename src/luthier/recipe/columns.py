"""The columns of the data that the parts of a recipe read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.parts import PACKAGE, Part
from luthier.recipe.resolve import Recipe
from luthier.types import EVERY


def read_columns(recipe: Recipe) -> tuple[str, ...]:
    """The columns that the recipe's parts read of a record besides question and answer, as their `fields` say.

    EVERY is among them for a part of the user's that reads columns without saying which.
    """
    names: dict[str, None] = {}
    for part in recipe.build_parts().values():
        names.update(dict.fromkeys(_fields(part)))
    return tuple(names)


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
