"""Who may import whom, read from the source with `ast`. Every checker takes a path and returns its complaints."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

# A room imports only rooms with a smaller number. Rooms of one number are neighbours and never meet.
RANKS = {
    "errors": 0.0,
    "keyed": 0.0,
    "threads": 0.0,
    "terminal": 0.0,
    "console": 0.05,
    "families": 0.05,
    "types": 0.1,
    "options": 0.1,
    "parts": 0.2,
    "update": 0.3,
    "recipe": 0.3,
    "run_folder": 0.3,
    "stats": 0.3,
    "proofs": 0.4,
    "records": 0.4,
    "chat": 0.4,
    "models": 1,
    "data": 1,
    "vision": 1,
    "diffusion": 1,
    "report": 1,
    "answers": 1.5,
    "datasets": 1.5,
    "objectives": 2,
    "tuners": 2,
    "select": 2,
    "rewards": 2,
    "sampling": 2,
    "engine": 3,
    "rollouts": 3,
    "evals": 3,
    "runs": 3.5,
    "modalities": 3.7,
    "steps": 4,
    "processes": 4.5,
    "conformance": 3.5,
    "compare": 5,
    "cli": 6,
    "__init__": 6,
    "__main__": 7,
}
IMPORTERS = ("importlib.metadata", "importlib.resources")


def import_faults(package: Path) -> list[str]:
    """Upward and sideways imports, rooms without a level, and imports by name outside `parts`."""
    faults = []
    for path in sorted(package.rglob("*.py")):
        room = _room(package, path)
        if room not in RANKS:
            faults.append(f"{path}: the room `{room}` has no level")
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, target in _rooms_imported(package, path, tree):
            if target not in RANKS:
                faults.append(f"{path}:{line}: there is no room `{target}`")
            elif target != room and RANKS[target] >= RANKS[room]:
                faults.append(f"{path}:{line}: {room} (level {RANKS[room]}) imports {target} (level {RANKS[target]})")
        if room != "parts":
            faults += [f"{path}:{line}: imports by name; only parts.py may" for line in _imports_by_name(tree)]
    return faults


def cycle_faults(package: Path) -> list[str]:
    """Circles of files that import one another, imports for type checkers and at first use included."""
    arrows = {module: sorted(_files_imported(package, path)) for module, path in _modules(package).items()}
    faults: list[str] = []
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        if module in trail:
            faults.append("imported in a circle: " + " → ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for target in arrows[module]:
                visit(target, [*trail, module])
            done.add(module)

    for module in arrows:
        visit(module, [])
    return faults


def _modules(package: Path) -> dict[str, Path]:
    paths = sorted(package.rglob("*.py"))
    return dict(zip(module_names(package, paths), paths, strict=True))


def _files_imported(package: Path, path: Path) -> set[str]:
    """Modules of the package that a file imports: `from x import y` counts as x.y where that is a file."""
    modules = _modules_cached(package)
    own = module_names(package, [path])[0]
    parent = own if path.name == "__init__.py" else own.rpartition(".")[0]
    targets: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(parent.split(".")[: len(parent.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (above, node.module)))
            for alias in node.names:
                targets.add(f"{source}.{alias.name}" if f"{source}.{alias.name}" in modules else source)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lazy" and node.args:
            targets |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return {target for target in targets if target in modules and target != own}


@cache
def _modules_cached(package: Path) -> frozenset[str]:
    return frozenset(_modules(package))


def _room(package: Path, path: Path) -> str:
    first = path.relative_to(package).parts[0]
    return first.removesuffix(".py")


def _rooms_imported(package: Path, path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    here = (package.name, *path.relative_to(package).with_suffix("").parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                pieces = tuple(alias.name.split("."))
                if pieces[0] == package.name:
                    yield node.lineno, pieces[1] if len(pieces) > 1 else "__init__"
        elif isinstance(node, ast.ImportFrom):
            start = here[: len(here) - node.level] if node.level else ()
            pieces = (*start, *(node.module or "").split(".")) if node.module else start
            if pieces[:1] != (package.name,):
                continue
            if len(pieces) > 1:
                yield node.lineno, pieces[1]
                continue
            for alias in node.names:
                if alias.name == "__version__":  # a constant, there before anything else of the package is
                    continue
                named = package / alias.name
                yield node.lineno, alias.name if named.is_dir() or named.with_suffix(".py").exists() else "__init__"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "lazy":
            named = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ""
            pieces = str(named).split(".")
            if pieces[0] == package.name:
                yield node.lineno, (*pieces, "__init__")[1]


def _imports_by_name(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "__import__":
                yield node.lineno
            continue
        else:
            continue
        if any(_is_importer(name) for name in names):
            yield node.lineno


def _is_importer(name: str) -> bool:
    return name.split(".")[0] in ("importlib", "runpy", "pkgutil") and not name.startswith(IMPORTERS)


_BLOCKED = """
import importlib, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "peft"):
            raise ImportError(f"imports {name}")
sys.meta_path.insert(0, Blocker())
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
"""


def torch_faults(source: Path, modules: Sequence[str]) -> list[str]:
    """Modules below `source` that cannot be imported where torch, transformers and peft are absent."""
    command = [sys.executable, "-c", _BLOCKED, *modules]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def module_names(package: Path, paths: Sequence[Path]) -> list[str]:
    """Dotted names of files of a package."""
    names = []
    for path in paths:
        pieces = path.relative_to(package.parent).with_suffix("").parts
        names.append(".".join(pieces[:-1] if pieces[-1] == "__init__" else pieces))
    return names
