"""The command `luthier`: its subcommands, and the output of errors."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from luthier import __version__
from luthier.cli import check, check_templates, compare, evaluate, keys, methods, prove, report, run
from luthier.errors import LuthierError
from luthier.terminal import echo

app = typer.Typer(
    help="Compare ways of fine-tuning a model: on your model, your data, one budget.",
    epilog="Start with: luthier compare quickstart",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compare")(compare.command)
app.command("run")(run.command)
app.command("check")(check.command)
app.command("check-templates")(check_templates.command)
app.command("methods")(methods.command)
app.command("keys")(keys.command)
app.command("schema")(keys.schema)
app.command("prove")(prove.command)
app.command("eval")(evaluate.command)
app.command("report")(report.command)


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"luthier {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options before the command. `main` reads `--debug` anywhere on the line; here it is listed in `--help`."""


def main() -> None:
    """Run the command line and exit with its code.

    2 is a mistake in the input, 1 a failed run, 130 a stop by Ctrl-C (typer's own).
    """
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        app(args=[argument for argument in arguments if argument != "--debug"], prog_name="luthier")
    except LuthierError as error:
        if debug:
            raise
        echo(f"error: {error.message}", err=True)
        if error.hint:
            echo(f"  {error.hint}", err=True)
        sys.exit(error.exit_code)
