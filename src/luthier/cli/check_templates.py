"""`luthier check-templates`: whether a chat template's masks are right in conversations of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luthier.conformance.chat_template import TemplateVerdict


def command(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A model, or a folder of .jinja files.")],
) -> None:
    """Check a model's chat template, or many: are an assistant's words, and nothing else, what is learned?"""
    from luthier.conformance.chat_template import check_folder, counted

    many = bool([*Path(folder).glob("*.jinja")]) and not (Path(folder) / "tokenizer.json").is_file()
    results: dict[str, list[TemplateVerdict]] = {}
    for name, verdicts in check_folder(Path(folder)) if many else _checked(folder):
        results[name] = verdicts
        for verdict in verdicts:
            if not many or verdict.outcome != "right":
                typer.echo(f"{name}  {verdict.kind}: {verdict.outcome}{'. ' if verdict.reason else ''}{verdict.reason}")
    typer.echo("")
    for line in counted(results):
        typer.echo(line)
    if any(verdict.outcome == "wrong" for verdicts in results.values() for verdict in verdicts):
        raise typer.Exit(1)


def _checked(folder: str) -> Iterator[tuple[str, list[TemplateVerdict]]]:
    """The name of a model, and the verdicts on its chat template."""
    from luthier.conformance.chat_template import check_template

    yield Path(folder).name, check_template(_tokenizer(folder))


def _tokenizer(folder: str) -> Any:
    from luthier.models.loading.load import load_tokenizer
    from luthier.recipe.blocks import Model

    return load_tokenizer(Model(path=folder), Path.cwd())
