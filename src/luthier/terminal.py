"""Text on a terminal: what comes from files and servers is shown, and never carried out."""

from __future__ import annotations

import re

import typer

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""C0 but tab and newline, DEL, C1, and the marks that turn the direction of the text around them."""


def printable(text: str) -> str:
    r"""The text with its control characters written as escapes, such as `\x1b`."""
    return CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def echo(text: str = "", err: bool = False) -> None:
    """Write a line, as `typer.echo` does."""
    typer.echo(printable(text), err=err)
