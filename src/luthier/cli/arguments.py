"""Arguments that several commands share, and the parsing of their text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.errors import RecipeError

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, a lock or a bundled recipe.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings above all others: train.optimizer.lr=5e-5"),
]
Out = Annotated[Path | None, typer.Option("--out", help="Where run folders go (default: `out` of the recipe).")]


def with_out(overrides: list[str] | None, out: Path | None) -> list[str]:
    """The overrides, with `--out` as one of them."""
    return [*(overrides or []), *([f'out="{out}"'] if out is not None else [])]


def split_names(text: str | None) -> list[str]:
    """`sft, dft+lora8` as a list."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def read_seeds(text: str | None) -> int | list[int] | None:
    """`3` is a number of seeds, `0,1,2` (or `7,`) names them.

    Raises:
        RecipeError: anything else.
    """
    if text is None:
        return None
    pieces = split_names(text)
    if not pieces or not all(piece.isdecimal() for piece in pieces):
        raise RecipeError(f"--seeds {text}: expected a number of seeds or a list.", "Write --seeds 3 or --seeds 0,1,2.")
    return [int(piece) for piece in pieces] if "," in text else int(text)


def read_columns(text: str | None) -> dict[str, str | list[str]] | None:
    """`prompt=body+question,completion=answer` as a mapping of columns; None if nothing is written.

    Raises:
        RecipeError: a piece without `=`, or an empty name.
    """
    if text is None:
        return None
    columns: dict[str, str | list[str]] = {}
    for piece in split_names(text):
        ours, sign, theirs = (part.strip() for part in piece.partition("="))
        names = [name.strip() for name in theirs.split("+")]
        if not sign or not ours or not all(names):
            raise RecipeError(
                f"--columns {text}: `{piece}` is no mapping.", "Write --columns prompt=NAME,completion=NAME."
            )
        columns[ours] = names[0] if len(names) == 1 else names
    return columns
