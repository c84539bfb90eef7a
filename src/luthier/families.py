"""Families of parts, read from the files with `ast`: the slots, the folders of their parts, their constants.

A class in a file called `base.py` that declares `SLOT` makes a family. The family's parts lie below the folder of that
file, or below the folder that `FOLDER` names there. No list of families exists.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parent
SHARED_FILES = ("base", "views", "sum")
"""Files of a family's folder that hold what its parts share."""
OF_FAMILIES = ("SLOT", "FOLDER")
"""Constants that describe a family rather than a part."""


@dataclass(frozen=True)
class Family:
    """One slot: the folders of its parts, its base classes and the constants that these declare for parts.

    `inner` are folders below `folders` whose parts belong to another family.
    """

    slot: str
    folders: tuple[str, ...]
    inner: tuple[str, ...]
    bases: tuple[str, ...]
    constants: tuple[str, ...]

    def files(self, package: Path = PACKAGE) -> list[Path]:
        """The family's part files: neither SHARED_FILES nor files whose name starts with an underscore."""
        paths: list[Path] = []
        for folder in self.folders:
            paths += sorted((package / folder).rglob("*.py"))
        return [path for path in paths if _is_part(path) and not self._is_inner(path.relative_to(package))]

    def holds(self, module: str) -> bool:
        """Whether a module, `luthier.objectives.supervised.sft`, lies in one of the family's folders."""
        path = Path(*module.split(".")[1:])
        return any(Path(folder) in path.parents for folder in self.folders) and not self._is_inner(path)

    def _is_inner(self, path: Path) -> bool:
        return any(Path(folder) in path.parents for folder in self.inner)


@dataclass(frozen=True)
class _Class:
    """A class of a `base.py`: the folder of its file, its bases, and what it declares as upper-case class variables."""

    folder: str
    bases: tuple[str, ...]
    constants: Mapping[str, ast.expr | None]


def _is_part(path: Path) -> bool:
    return not path.name.startswith("_") and path.stem not in SHARED_FILES


@cache
def families(package: Path = PACKAGE) -> Mapping[str, Family]:
    """Slot → family, in the order of the base files' paths.

    Raises:
        ValueError: a base class whose SLOT or FOLDER is no text written out.
    """
    classes: dict[str, _Class] = {}
    for path in sorted(package.rglob("base.py")):
        classes.update(_classes(path, package))
    heads, folders = {}, {}
    for name, described in classes.items():
        if described.constants.get("SLOT") is not None:
            heads[name] = _text(described.constants["SLOT"])
            folders[name] = _folder(described)
    slots = {name: slot for name in classes if (slot := _slot(name, classes, heads)) is not None}
    return {slot: _family(slot, classes, heads, folders, slots) for slot in dict.fromkeys(heads.values())}


def _classes(path: Path, package: Path) -> Iterator[tuple[str, _Class]]:
    folder = path.parent.relative_to(package).as_posix()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node.name, _Class(folder, tuple(map(last_name, node.bases)), dict(_constants(node)))


def _constants(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr | None]]:
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        if line.target.id.isupper() and "ClassVar" in ast.unparse(line.annotation):
            yield line.target.id, line.value


def _folder(described: _Class) -> str:
    below = described.constants.get("FOLDER")
    return described.folder if below is None else f"{described.folder}/{_text(below)}"


def _text(node: ast.expr | None) -> str:
    return str(ast.literal_eval(node)) if node is not None else ""


def _slot(name: str, classes: Mapping[str, _Class], heads: Mapping[str, str]) -> str | None:
    """The slot of a base class: its own, or that of a class it derives from."""
    if name in heads:
        return heads[name]
    bases = classes[name].bases if name in classes else ()
    return next((slot for base in bases if (slot := _slot(base, classes, heads)) is not None), None)


def _family(
    slot: str,
    classes: Mapping[str, _Class],
    heads: Mapping[str, str],
    folders: Mapping[str, str],
    slots: Mapping[str, str],
) -> Family:
    bases = [name for name in slots if slots[name] == slot]
    bases.sort(key=lambda name: name not in heads)  # messages name the first: the class that declares the slot
    named = tuple(folders[name] for name in bases if name in heads)
    # `files` reads a folder with all below it: a folder inside another of the family would list its parts twice.
    own = tuple(folder for folder in named if not any(Path(other) in Path(folder).parents for other in named))
    inner = []  # folders below this family's that hold the parts of another one
    for name, folder in folders.items():
        if heads[name] != slot and any(Path(above) in Path(folder).parents for above in own):
            inner.append(folder)
    constants: dict[str, None] = {}
    for name in bases:
        constants.update(dict.fromkeys(classes[name].constants))
    return Family(slot, own, tuple(inner), tuple(bases), tuple(name for name in constants if name not in OF_FAMILIES))


def last_name(base: ast.expr) -> str:
    """The name of a base class as it is written, without the module before it."""
    if isinstance(base, ast.Attribute):
        return base.attr
    if isinstance(base, ast.Subscript):
        return last_name(base.value)
    return base.id if isinstance(base, ast.Name) else ""


def slot_of_class(tree: ast.Module, name: str) -> str | None:
    """The slot of a class in a part file, or None.

    Its base classes tell it: those of a family, a part of the package, or a class of the same file that has such bases.
    """
    local = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    known = _base_classes(tree) | _imported_parts(tree)
    visited: set[str] = set()  # a file may hold classes that name each other as bases by mistake
    waiting = [name]
    while waiting:
        current = waiting.pop(0)
        if current in known and current not in local:
            return known[current]
        if current in local and current not in visited:
            visited.add(current)
            waiting += [last_name(base) for base in local[current].bases]
    return None


def _base_classes(tree: ast.Module) -> dict[str, str]:
    """Base classes with their slots, under their own names and under those that the file imports them as."""
    known: dict[str, str] = {}
    for family in families().values():
        known.update(dict.fromkeys(family.bases, family.slot))
    renamed: dict[str, str] = {}
    for node in tree.body:
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if alias.asname and alias.name in known:
                renamed[alias.asname] = known[alias.name]
    return known | renamed


def _imported_parts(tree: ast.Module) -> dict[str, str]:
    """Names imported from a folder of parts, with the slot of that folder."""
    imported: dict[str, str] = {}
    for node in tree.body:
        if not isinstance(node, ast.ImportFrom) or not node.module or node.level:
            continue
        slot = next((family.slot for family in families().values() if family.holds(node.module)), None)
        if slot is not None and not node.module.endswith(".base"):
            imported.update({alias.asname or alias.name: slot for alias in node.names})
    return imported
