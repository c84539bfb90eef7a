"""What docs/design.md says of the code is looked up in the code."""

import ast
import re
import sys
from pathlib import Path

import pytest

from house.imports import RANKS
from luthier.families import families

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "luthier"
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
sys.path.insert(0, str(ROOT / "bench"))

import walk  # noqa: E402


def names(tree, prefix=""):
    """Functions and classes of a file, nested ones with a dot."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield prefix + node.name
            yield from names(node, f"{prefix}{node.name}.")


def test_the_table_of_packages_has_every_package_at_its_level():
    section = PAGE.partition("## Packages")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\d.]+) \| ([^|]+) \|", section, flags=re.MULTILINE)
    levels = {name: float(level) for level, cell in rows for name in re.findall(r"`(\w+)`", cell)}
    assert levels == {name: float(level) for name, level in RANKS.items()}


def test_every_folder_with_code_is_in_the_table():
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE}
    assert folders <= set(RANKS)


def test_the_table_of_slots_has_every_family():
    section = PAGE.partition("| slot |")[2].partition("\n\n")[0]
    slots = {slot.strip() for row in section.splitlines()[2:] for slot in row.split("|")[1].split(",")}
    assert slots == set(families())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("path", walk.HEADINGS)
def test_the_call_path_names_functions_that_exist(path, nested):
    stations = walk.stations_of_page(path, nested)
    assert bool(stations) == (not nested or path == "recipe")
    known = {file: set(names(ast.parse((PACKAGE / file).read_text()))) for file, _ in stations}
    assert [f"{file}: {name}" for file, name in stations if name not in known[file]] == []
