"""`luthier check`: mistakes in a recipe or a part file, reported before anything is trained."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.arguments import Overrides, RecipeArgument, split_names
from luthier.console import Terminal
from luthier.errors import DataError, RecipeError
from luthier.terminal import echo

if TYPE_CHECKING:
    from luthier.recipe import Recipe
    from luthier.steps.check_data import GuessedColumns


def command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    show: Annotated[
        bool,
        typer.Option("--show", help="Print each value and where it came from, no more (meanings: `luthier keys`)."),
    ] = False,
    probe: Annotated[bool, typer.Option("--probe", help="Train two updates to estimate the time.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Write the columns that the check guesses into the recipe file.")
    ] = False,
    methods: Annotated[
        str | None,
        typer.Option("--methods", help="Methods to try on the recipe: sft,dft or all (default: those of the recipe)."),
    ] = None,
) -> None:
    """Check a recipe, its data and the memory that it needs, without training; or a part file (./mine.py)."""
    if recipe.endswith(".py"):
        _check_part(Path(recipe))
        return
    from luthier.recipe import load_recipe

    loaded = load_recipe(recipe, [], overrides or [])
    if show:
        _show_values(loaded)
    _try_methods(loaded, recipe, overrides or [], methods)
    if show:
        return

    from luthier.steps.check_data import write_columns
    from luthier.steps.check_page import check_recipe

    while True:
        guesses: list[GuessedColumns] = []
        try:
            check_recipe(loaded, probe, Terminal(), partial(_keep_guess, guesses))
            return
        except DataError:
            if not (yes and guesses):
                raise
        for line in write_columns(recipe, guesses, overrides or []):
            echo(f"written into {recipe}: {line}")
        loaded = load_recipe(recipe, [], overrides or [])  # now a source that was not reached before may be


def _keep_guess(guesses: list[GuessedColumns], finding: object) -> None:
    from luthier.steps.check_data import GuessedColumns

    if isinstance(finding, GuessedColumns) and finding.offered:
        guesses.append(finding)


def _check_part(path: Path) -> None:
    if not path.is_file():
        raise RecipeError(f"There is no part file {path}.")

    from luthier import parts
    from luthier.cli.methods import show_part
    from luthier.recipe.methods import slot_of_file

    show_part(parts.read_entry(slot_of_file(path), path.resolve()))
    from luthier.conformance.matrix import check_part

    check_part(path.resolve(), Terminal())


def _show_values(recipe: Recipe) -> None:
    from luthier.cli.methods import as_written
    from luthier.recipe.merge import dotted

    rows = [(key, as_written(setting)) for key, setting in dotted(recipe.data).items()]
    key_width = max(len(key) for key, _ in rows)
    setting_width = min(40, max(len(setting) for _, setting in rows))
    for key, setting in rows:
        echo(f"{key:{key_width}}  {setting:{setting_width}}  {recipe.origins[key]}")


def _try_methods(recipe: Recipe, source: str, overrides: list[str], names_text: str | None) -> None:
    """Resolve the recipe under each method. One that does not apply is an error only if it was named."""
    from luthier.recipe import list_methods, load_recipe

    everything = names_text == "all"
    names = [method.name for method in list_methods(recipe.base)] if everything else split_names(names_text)
    for name in names or recipe.settings.compare.methods:
        try:
            changed = _changes(recipe, load_recipe(source, [name], overrides))
        except RecipeError as error:
            if not everything:
                raise
            echo(f"method {name}: does not apply: {error.message}")
            continue
        echo(f"method {name}: {'; '.join(changed) or 'changes nothing in this recipe'}")


def _changes(before: Recipe, after: Recipe) -> list[str]:
    from luthier.cli.methods import as_written
    from luthier.recipe.merge import dotted

    old, changes = dotted(before.data), []
    for key, setting in dotted(after.data).items():
        if key not in old or old[key] != setting:
            advice = " (advice)" if after.origins[key].startswith("advice") else ""
            changes.append(f"{key} = {as_written(setting)}{advice}")
    return changes
