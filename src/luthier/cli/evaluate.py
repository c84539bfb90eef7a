"""`luthier eval`: score a model, or the model of a run, on records."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli.arguments import Overrides, read_columns
from luthier.console import Terminal


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_RUN", help="A model, or the folder of a run.")],
    data: Annotated[str, typer.Option("--data", help="Records to score on: a file or a bundled data set.")],
    overrides: Overrides = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="How answers are scored: by default as the run did; else auto.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            help="Columns of the records: prompt=question,completion=answer; + joins several: prompt=body+question.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use only so many records.")] = None,
) -> None:
    """Score a model on records that it was not trained on; a run's model is prompted as its recipe says."""
    from luthier.steps.evaluate import evaluate_model

    evaluate_model(
        model,
        data=data,
        metric=metric,
        limit=limit,
        overrides=overrides or [],
        console=Terminal(),
        columns=read_columns(columns),
    )
