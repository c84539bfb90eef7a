"""Lengths, leftovers, machine names and versions: what is read from the text of the files alone."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

FILE_LINES = 500
FUNCTION_LINES = 60
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".jinja", ".html", ".cfg", ""}
SKIPPED = {"build", "dist", "runs", "node_modules"}
REGISTRIES = r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|npmjs\.(?:org|com)"
MACHINE = [
    (re.compile(r"(?<![\w.])/(?:work|root|opt|Users|home)/[\w.]"), "an absolute path of one machine"),
    (re.compile(rf"(?i)\b(?:[\w-]+\.)*(?:{REGISTRIES})\b"), "a registry's host"),
    (re.compile(r"(?i)\b[\w-]+\.(?:internal|corp|lan|intranet)\b(?!\s*[(=])"), "the name of a private host"),
    (re.compile(r"\b(?:10|172|192)\.\d{1,3}\.\d{1,3}\.\d{1,3}\b"), "a private address"),
]
LEFTOVER = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")


def length_faults(folders: Sequence[Path]) -> list[str]:
    """Files and functions longer than a reader holds."""
    faults = []
    for path in _python_files(folders):
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > FILE_LINES:
            faults.append(f"{path}: {lines} lines (at most {FILE_LINES})")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    faults.append(f"{path}:{node.lineno}: {node.name} has {length} lines (at most {FUNCTION_LINES})")
    return faults


def size_faults(package: Path, most: float) -> list[str]:
    """Packages that hold more than a share `most` of the lines: they are several in one."""
    lines: dict[str, int] = {}
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).parts[0]
        lines[room] = lines.get(room, 0) + path.read_text(encoding="utf-8").count("\n")
    total = sum(lines.values())
    shares = {room: count / total for room, count in lines.items()}
    return [
        f"{room} holds {share:.1%} of the lines (at most {most:.0%})" for room, share in shares.items() if share > most
    ]


def leftover_faults(folders: Sequence[Path]) -> list[str]:
    """Notes to oneself that belong into an issue."""
    return [
        f"{path}:{number}: {line.strip()}"
        for path in _python_files(folders)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if LEFTOVER.search(line)
    ]


def machine_faults(root: Path) -> list[str]:
    """Paths, hosts and addresses that exist on one machine or in one network only."""
    faults = []
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root).parts
        if path.name == ".git" or path.suffix not in SUFFIXES or not path.is_file() or _skipped(inside[:-1]):
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, 1):
            faults += [f"{path}:{number}: {what}: {line.strip()[:80]}" for found, what in MACHINE if found.search(line)]
    return faults


def _skipped(folders: Sequence[str]) -> bool:
    hidden = any(folder.startswith(".") and folder != ".ci" for folder in folders)
    return hidden or any(folder in SKIPPED for folder in folders[:1])


def version_faults(root: Path) -> list[str]:
    """The version stands in pyproject.toml, __init__.py and the change log, and is one."""
    declared = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    init = (root / "src" / "luthier" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', init, re.MULTILINE)
    faults = []
    if found is None or found.group(1) != declared:
        faults.append(f"pyproject.toml says {declared}, __init__.py {found.group(1) if found else 'nothing'}")
    if f"## [{declared}]" not in (root / "CHANGELOG.md").read_text(encoding="utf-8"):
        faults.append(f"CHANGELOG.md has no section [{declared}]")
    return faults


def _python_files(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.rglob("*.py"))]
