"""`luthier keys` and `luthier schema`: the keys of a recipe, read from the settings tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from luthier.terminal import echo

if TYPE_CHECKING:
    from luthier.recipe.keys import Setting


def command(
    key: Annotated[
        str | None, typer.Argument(metavar="[KEY]", help="A key or a block, such as train.batch; default: all.")
    ] = None,
) -> None:
    """The keys of a recipe: values, default, what each does."""
    from luthier.recipe import keys

    for setting in keys.settings_tree() if key is None else keys.find(key):
        _print(setting)


def _print(setting: Setting) -> None:
    import shutil
    import textwrap

    columns = min(max(shutil.get_terminal_size().columns, 72), 110)  # as the tables of `luthier methods NAME`
    default = f", default {setting.default}" if setting.default not in ("", "–") else ""
    kind = f" (kind: {setting.grammar})" if setting.grammar else ""
    echo(f"{setting.path}{kind}: {setting.form}{default}")
    echo(textwrap.fill(setting.description, columns, initial_indent="    ", subsequent_indent="    "))


def schema() -> None:
    """The JSON schema of a recipe, for editors."""
    import json

    from luthier.recipe.keys import json_schema

    echo(json.dumps(json_schema(), indent=1, ensure_ascii=False))
