"""`luthier run`: one recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.arguments import Out, Overrides, RecipeArgument, with_out
from luthier.errors import RunError
from luthier.terminal import echo

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
        echo(f"stopped; to go on, give the same command with --resume {folder.path}", err=True)
        raise typer.Exit(STOPPED)
    _print_record(record)
    echo(f"results: {folder.path}")


def _print_record(record: Mapping[str, Any]) -> None:
    """Print the scores, speed, memory and warnings of a finished run."""
    train = record["train"]
    for name in ("target", "retain"):
        scores = record["evaluation"].get(name)
        if scores is None and name == "target":
            echo("target    not scored: no test record")
        if scores is not None:
            mean = f"{100 * scores['mean']:5.1f}" if scores["ranks"] else f"{scores['mean']:5.3g}"
            echo(f"{name:8}{mean}  ({scores['n']} records, {scores['metric']})")
    for name, mean in record["evaluation"].get("further", {}).items():
        echo(f"{mean:8.3g}  {name}")
    measured, estimated = train["peak_memory_bytes"] / 1e9, train["estimated_memory_bytes"]
    speed = f"{train['tokens_per_second']:,.0f} {train.get('counts', 'tokens')}/s"
    echo(f"speed   {speed} over {train['seconds']:.0f} s of training")
    before = "" if estimated is None else f" ({estimated / 1e9:.2f} GB estimated before)"
    echo(f"memory  {measured:.2f} GB at the peak{before}")
    for line in train.get("notes", []):
        echo(f"note: {line}")
    for line in [*train.get("data", {}).get("warnings", []), *record.get("warnings", [])]:
        echo(f"warning: {line}")


def _refuse_changes(now: Recipe, then: Recipe, folder: Path) -> None:
    """Raise RunError for the first key or part file in which a recipe differs from that of the run in `folder`."""
    from luthier.recipe.fingerprint import fingerprint

    if fingerprint(now) == fingerprint(then):  # an older lock may write out other defaults that mean the same
        return
    before, after = _settings_by_path(then.data), _settings_by_path(now.data)
    hint = f"Resume it as it was started (luthier run {folder / 'lock.json'} --resume {folder}), or start a new run."
    for path in sorted({*before, *after}):
        if before.get(path) != after.get(path):
            change = f"`{path}` was {before.get(path)!r}, now {after.get(path)!r}"
            raise RunError(f"{folder} was started with another recipe: {change}.", hint)
    raise RunError(f"{folder} was started with another version of {', '.join(now.text_of_parts)}.", hint)


def _settings_by_path(data: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted path, without part files: the copy in a lock has another path, and texts are compared."""
    from luthier.recipe.fingerprint import NOT_PART_OF_A_RUN  # keys that may change when a run is resumed
    from luthier.recipe.merge import dotted

    settings = dotted({key: block for key, block in data.items() if key not in NOT_PART_OF_A_RUN})
    return {path: setting for path, setting in settings.items() if not _names_part_file(setting)}


def _names_part_file(setting: Any) -> bool:
    return isinstance(setting, str) and setting.endswith(".py")
