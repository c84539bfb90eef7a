"""`luthier run`: one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.arguments import Out, Overrides, RecipeArgument, with_out
from luthier.errors import RunError

if TYPE_CHECKING:
    from luthier.recipe import Recipe

# What a resumed run may be asked differently: these do not change what it computes.
OUTSIDE = ("name", "compare", "observe", "out")


def command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    method: Annotated[str | None, typer.Option("--method", help="A method to apply: dft, dft+lora8, ./mine.py")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="The folder of a run to go on with.")] = None,
    out: Out = None,
) -> None:
    """Train and evaluate one recipe."""
    from luthier.recipe import load_recipe
    from luthier.records import RunFolder, read_json, write_json

    loaded = load_recipe(recipe, [method] if method else [], with_out(overrides, out))
    if resume is None:
        folder = RunFolder.create(Path(loaded.settings.out), loaded.name)
        write_json(folder.path / "lock.json", loaded.to_lock())
    else:
        folder = RunFolder.open(resume)
        _refuse_changes(loaded, load_recipe(read_json(folder.path / "lock.json")), folder.path)
    with folder.lock():
        from luthier.steps import run_recipe

        run_recipe(loaded, folder.path, loaded.settings.observe)
    typer.echo(f"results: {folder.path}")


def _refuse_changes(now: Recipe, then: Recipe, folder: Path) -> None:
    before, after = _flat(then.data), _flat(now.data)
    for path in sorted({*before, *after}):
        if before.get(path) != after.get(path):
            raise RunError(
                f"{folder} was started with another recipe: `{path}` was {before.get(path)!r} and is now "
                f"{after.get(path)!r}.",
                f"Resume it as it was started (luthier run {folder / 'lock.json'} --resume {folder}), or start anew.",
            )
    if now.text_of_parts != then.text_of_parts:
        raise RunError(f"{folder} was started with another version of a part file.", "Start a new run.")


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    from luthier.recipe.merge import leaves

    return {".".join(key): value for key, value in leaves(data) if key[0] not in OUTSIDE}
