"""`luthier run`: one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.arguments import Out, Overrides, RecipeArgument, with_out
from luthier.errors import RunError

if TYPE_CHECKING:
    from luthier.recipe import Recipe

STOPPED = 130


def command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    method: Annotated[str | None, typer.Option("--method", help="A method to apply: dft, dft+lora8, ./mine.py")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="The folder of a run to go on with.")] = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Processes that share every update (one per GPU).")
    ] = 1,
    out: Out = None,
) -> None:
    """Train and evaluate one recipe."""
    from luthier.recipe import load_recipe
    from luthier.run_folder import RunFolder, read_json, write_json

    loaded = load_recipe(recipe, [method] if method else [], with_out(overrides, out))
    if resume is None:
        folder = RunFolder.create(Path(loaded.settings.out), loaded.name)
        write_json(folder.path / "lock.json", loaded.to_lock())
    else:
        folder = RunFolder.open(resume)
        if (folder.path / "plan.json").is_file():
            raise RunError(
                f"{folder.path} is the folder of a comparison.",
                f"Go on with it by `luthier compare {recipe} --resume {folder.path}`.",
            )
        _refuse_changes(loaded, load_recipe(read_json(folder.path / "lock.json")), folder.path)
    with folder.lock():
        if processes == 1:
            from luthier.steps import run_recipe

            record = run_recipe(loaded, folder.path, loaded.settings.observe)
        else:
            from luthier.processes.torchrun import run_on_ranks

            record = run_on_ranks(loaded, folder.path, processes)
    if record["status"] == "stopped":
        typer.echo(f"stopped; to go on, give the same command with --resume {folder.path}", err=True)
        raise typer.Exit(STOPPED)
    train = record["train"]
    for name in ("target", "retain"):
        scores = record["evaluation"].get(name)
        if scores is None and name == "target":
            typer.echo("target    not scored: no test record")
        if scores is not None:
            value = f"{100 * scores['mean']:5.1f}" if scores["ranks"] else f"{scores['mean']:5.3g}"
            typer.echo(f"{name:8}{value}  ({scores['n']} records, {scores['metric']})")
    for name, value in record["evaluation"].get("further", {}).items():
        typer.echo(f"{value:8.3g}  {name}")
    measured, estimated = train["peak_memory_bytes"] / 1e9, train["estimated_memory_bytes"]
    speed = f"{train['tokens_per_second']:,.0f} {train.get('counts', 'tokens')}/s"
    typer.echo(f"speed   {speed} over {train['seconds']:.0f} s of training")
    before = "" if estimated is None else f" ({estimated / 1e9:.2f} GB estimated before)"
    typer.echo(f"memory  {measured:.2f} GB at the peak{before}")
    for line in [*train.get("data", {}).get("warnings", []), *record.get("warnings", [])]:
        typer.echo(f"warning: {line}")
    typer.echo(f"results: {folder.path}")


def _refuse_changes(now: Recipe, then: Recipe, folder: Path) -> None:
    before, after = _flat(then.data), _flat(now.data)
    again = f"Resume it as it was started (luthier run {folder / 'lock.json'} --resume {folder}), or start a new run."
    for path in sorted({*before, *after}):
        if before.get(path) != after.get(path):
            change = f"`{path}` was {before.get(path)!r}, now {after.get(path)!r}"
            raise RunError(f"{folder} was started with another recipe: {change}.", again)
    if sorted(now.text_of_parts.values()) != sorted(then.text_of_parts.values()):
        raise RunError(f"{folder} was started with another version of {', '.join(now.text_of_parts)}.", again)


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted path. Part files are left out: the lock's copy has another path, and texts are compared."""
    from luthier.recipe.fingerprint import NOT_PART_OF_A_RUN  # which a resumed run may be asked differently
    from luthier.recipe.merge import dotted

    values = dotted({key: block for key, block in data.items() if key not in NOT_PART_OF_A_RUN})
    return {path: value for path, value in values.items() if not (isinstance(value, str) and value.endswith(".py"))}
