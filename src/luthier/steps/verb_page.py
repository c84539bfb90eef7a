"""`python -m luthier.steps.verb_page docs/pipelines.md` writes the tables of verbs and their keys into the page."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from luthier import parts
from luthier.recipe.steps import SLOT, keys_of
from luthier.run_folder import write_text

BEGIN, END = "<!-- verbs -->\n", "<!-- /verbs -->\n"


def tables() -> str:
    """Two tables in Markdown: what each verb does and leaves, and every key."""
    verbs, rows = {}, []
    for entry in parts.catalogue(SLOT):
        verb = verbs[entry.name] = parts.load(SLOT, entry.name)
        rows.append([f"`{entry.name}`", entry.about.rstrip("."), _left_by(verb), _codes(keys_of(verb))])
    of_verbs = _table(["`do`", "what it does", "what it leaves", "its keys"], rows)
    of_keys = _table(["key", "of", "default", "meaning"], list(_key_rows(verbs)))
    return f"{of_verbs}\n{of_keys}"


def renewed(page: str) -> str:
    """The page with new tables between its two marks.

    Raises:
        ValueError: the page lacks a mark.
    """
    head, _, rest = page.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise ValueError(f"the page lacks {BEGIN.strip()} or {END.strip()}")
    return f"{head}{BEGIN}\n{tables()}\n{END}{tail}"


def _left_by(verb: type[Any]) -> str:
    columns = f"columns {_codes(verb.COLUMNS)}" if verb.COLUMNS else ""
    return ", ".join([*verb.LEAVES, *([columns] if columns else [])]) or "facts in `run.json`"


def _key_rows(verbs: dict[str, type[Any]]) -> Iterator[list[str]]:
    """A row for each key, default and meaning, with all verbs that have the three in common."""
    owners: dict[tuple[str, str, str], list[str]] = {}
    for name, verb in verbs.items():
        for key, field in keys_of(verb).items():
            owners.setdefault((key, _default(field), str(field.description)), []).append(name)
    for (key, default, meaning), names in sorted(owners.items()):
        yield [f"`{key}`", _codes(names), default, meaning]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "none: it must be written"
    default = field.get_default(call_default_factory=True)
    return "" if default is None else f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _codes(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_text(path, renewed(path.read_text(encoding="utf-8")))
