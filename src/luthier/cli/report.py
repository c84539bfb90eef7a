"""`luthier report`: the report of a comparison again, in any format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from luthier.terminal import echo


class ReportFormat(StrEnum):
    """The formats of a report."""

    html = "html"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a comparison, such as runs/quickstart/1.")],
    format: Annotated[ReportFormat, typer.Option("--format", help="The form of the report.")] = ReportFormat.html,
) -> None:
    """Write the report of a comparison again; nothing is computed."""
    from luthier.run_folder import RunFolder

    folder = RunFolder.open(run)
    from luthier.report import write_report

    echo(str(write_report(folder.path, format.value)))
