"""The reference of a recipe's keys, `docs/reference/recipe.md`, written from the settings tree.

`python -m luthier.recipe.reference` prints it (`make reference`); a test holds that the committed page is current.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.recipe.keys import NO_DEFAULT, Setting, settings_tree

INTRODUCTION = """# The keys of a recipe

<!-- Written by `make reference` from the descriptions in src/luthier/recipe/: change them there. -->

Every key with the values that it takes, its default and what it does. `luthier keys KEY` prints the same;
`luthier schema` prints a JSON schema for editors. The dots of a key name the blocks that it is written in; on the
command line it is one word: `train.batch.records=32`. A key that takes a *part* takes its name, or a block of `kind`
and the part's options (`luthier methods NAME` lists them). Every *source of records* has the keys of `data.train`. The
keys of `steps` are described in [pipelines.md](../pipelines.md).

`extends` names a recipe, by file or bundled name, that this one adds to.
"""


def page() -> str:
    """The whole page in Markdown: a table for the keys at the top, and one for each block."""
    settings = settings_tree()
    sections = [_table([setting for setting in settings if "." not in setting.path])]
    blocks = dict.fromkeys((s.path.rpartition(".")[0], s.grammar) for s in settings if "." in s.path)
    for path, grammar in blocks:
        within = [s for s in settings if s.path.rpartition(".")[0] == path and s.grammar == grammar]
        if path == "rl":
            sections.append(f"## `{path}` of the kind `{grammar}`\n\n{_table(within)}")
        else:
            sections.append(f"## `{path}`\n\n{_table(within)}")
    return "\n".join([INTRODUCTION, "## At the top\n", *sections])


def _table(settings: Sequence[Setting]) -> str:
    lines = ["| key | values | default | what it does |", "|---|---|---|---|"]
    for setting in settings:
        default = setting.default if setting.default in ("", NO_DEFAULT) else f"`{setting.default}`"
        cells = (f"`{setting.path}`", setting.form, default, setting.description)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |".replace("|  |", "| |"))
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(page(), end="")
