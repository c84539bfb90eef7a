"""The option tables of the documentation, written from the parts' own descriptions: `make reference`.

`reference/parts.md` lists all parts. On any other page the lines between `<!-- options:NAME -->` and
`<!-- /options -->` are replaced by the table of that part; a name that several slots have is `SLOT/NAME`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from luthier import parts
from luthier.errors import RecipeError, nearest
from luthier.parts import Entry
from luthier.recipe.settings import slots

PAGE = Path("reference") / "parts.md"
HEAD = """# Parts and their options

Every part by the slot that it fills in a recipe, with its options; those that a part has from its family come last.
`luthier methods NAME` prints the same. This page is written by `make reference` from the files of the parts.
"""
BLOCK = re.compile(r"<!-- options:(?P<name>\S+) -->\n(?P<table>.*?)<!-- /options -->", re.DOTALL)
BAR = r"\|"  # a `|` within a cell, which would end the cell
OPENED = re.compile(r"<!-- options:\S+ -->")


def pages(docs: Path) -> dict[Path, str]:
    """Path → current text of the generated pages of a folder: the page of all parts, and pages with marked tables.

    Raises:
        RecipeError: a marker names no part, or one of several slots, or is not closed.
    """
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(docs.rglob("*.md")) if path != docs / PAGE}
    marked = {path: with_tables(text, path) for path, text in texts.items() if OPENED.search(text)}
    return {docs / PAGE: parts_page(docs), **marked}


def parts_page(docs: Path) -> str:
    """The page of all parts, with links to the parts' own pages in `docs`."""
    sections = [HEAD]
    for slot in slots():
        sections.append(f"## {slot}\n")
        sections += [section for entry in parts.catalogue(slot) for section in _section(entry, docs)]
    return "\n".join(sections)


def _section(entry: Entry, docs: Path) -> Iterator[str]:
    paper = entry.constants.get("PAPER")
    own = docs / "methods" / f"{entry.name}.md"
    described = f" [Its page](../methods/{own.name})." if entry.slot in ("objective", "tuner") and own.is_file() else ""
    yield f"### `{entry.name}`\n"
    yield f"{entry.about}{f' Source: {paper}.' if paper else ''}{described}\n"
    yield table(entry) if entry.described else "No options.\n"


def table(entry: Entry) -> str:
    """The options of a part in Markdown, one line each."""
    rows = [("option", "takes", "default", "meaning"), ("---",) * 4]
    for option in entry.described:
        default = "required" if option.default is None else f"`{option.default}`"
        rows.append((f"`{option.name}`", option.takes, default, option.description))
    return "".join(f"| {' | '.join(cell.replace('|', BAR) for cell in row)} |\n" for row in rows)


def with_tables(text: str, path: Path) -> str:
    """A page with the table at each of its markers written again; all other text is unchanged."""
    blocks = list(BLOCK.finditer(text))
    opened = OPENED.findall(text)
    if len(blocks) != len(opened) or any(OPENED.search(block["table"]) for block in blocks):
        raise RecipeError(f"{path}: {opened[0]} is not closed.", "Close each table by a line `<!-- /options -->`.")

    def written(block: re.Match[str]) -> str:
        return f"<!-- options:{block['name']} -->\n\n{table(_named(block['name'], path))}\n<!-- /options -->"

    return BLOCK.sub(written, text)


def _named(name: str, path: Path) -> Entry:
    slot, _, short = name.rpartition("/")
    entries = {f"{key}/{entry.name}": entry for key in slots() for entry in parts.catalogue(key)}
    matches = [full for full, entry in entries.items() if full == name or (not slot and entry.name == short)]
    if len(matches) > 1:
        raise RecipeError(f"{path}: several parts are called `{name}`.", f"Write one of {', '.join(matches)}.")
    if not matches:
        close = nearest(short, [entry.name for entry in entries.values()])
        raise RecipeError(f"{path}: there is no part called `{name}`.", f"Did you mean `{close}`?" if close else None)
    return entries[matches[0]]


def main(docs: Path) -> None:
    """Write the pages of a folder whose tables are not current, and name them."""
    for path, text in pages(docs).items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
