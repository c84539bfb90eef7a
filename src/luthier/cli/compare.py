"""`luthier compare`: several methods under one budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli.arguments import Out, Overrides, RecipeArgument, read_seeds, split_names, with_out
from luthier.console import Terminal
from luthier.terminal import echo


def command(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Methods to compare: sft,dft,asft (default: those of the recipe).")
    ] = None,
    seeds: Annotated[str | None, typer.Option("--seeds", help="A number of seeds, or a list: 0,1,2")] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="The folder of a comparison to go on with.")] = None,
    out: Out = None,
) -> None:
    """Same model, data and budget through several methods: table, statistics, cost, forgetting, report."""
    from luthier.recipe import load_recipe
    from luthier.run_folder import RunFolder

    chosen_seeds = read_seeds(seeds)
    folder = None if resume is None else RunFolder.open(resume)
    loaded = load_recipe(recipe, [], with_out(overrides, out))

    from luthier.compare import compare

    report = compare(loaded, split_names(methods) or None, chosen_seeds, folder, Terminal())
    echo(f"report: {report}")
