"""What every part file must be: well named, documented, tested, without idle options or hidden randomness."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from luthier.families import SHARED_FILES
from luthier.options import Option, read_options

Slots = Mapping[str, Sequence[str]]
PAGED = ("objective", "tuner")  # slots whose parts have a page of their own

TORCH_DRAWS = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli",
    "multinomial", "poisson", "manual_seed", "seed", "get_rng_state", "set_rng_state", "dropout",
}  # fmt: skip
TENSOR_DRAWS = {"uniform_", "normal_", "bernoulli_", "random_", "exponential_", "geometric_", "cauchy_", "log_normal_"}
LOCAL_GENERATORS = {
    "random": {"Random", "SystemRandom"},
    "numpy.random": {"default_rng", "Generator", "SeedSequence", "PCG64", "Philox"},
}


def part_files(package: Path, rooms: Sequence[str]) -> list[Path]:
    """The part files of a slot: neither underscore files nor what parts share, such as `base.py`."""
    found = [path for room in rooms for path in sorted((package / room).rglob("*.py"))]
    return [path for path in found if not path.name.startswith("_") and path.stem not in SHARED_FILES]


def name_faults(root: Path, package: Path, slots: Slots) -> list[str]:
    """One class per part file, named like it; its page, its test; a stem only once in its slot."""
    pages = sorted((root / "docs").rglob("*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    faults = []
    for slot, rooms in slots.items():
        seen: dict[str, Path] = {}
        for path in part_files(package, rooms):
            faults += _class_faults(path)
            if path.stem in seen:
                faults.append(f"{path}: the {slot} `{path.stem}` is also {seen[path.stem]}")
            seen[path.stem] = path
            if slot in PAGED and not (root / "docs" / "methods" / f"{path.stem}.md").is_file():
                faults.append(f"{path}: docs/methods/{path.stem}.md is missing")
            if slot not in PAGED and f"`{path.stem}`" not in text:
                faults.append(f"{path}: no page of docs/ mentions `{path.stem}`")
            shared = None if slot in PAGED else root / "tests" / path.relative_to(package).parts[0]
            faults += _test_faults(path, root / "tests", shared)
    return faults


def _test_faults(path: Path, tests: Path, shared: Path | None) -> list[str]:
    """Objectives and tuners have a test file each; small parts may share one of their room that names them."""
    if list(tests.rglob(f"test_{path.stem}.py")):
        return []
    named = re.compile(rf"\b{path.stem.replace('_', '')}\b|[\"']{path.stem}\b", re.IGNORECASE)
    others = shared.rglob("test_*.py") if shared else ()
    if any(named.search(found.read_text(encoding="utf-8")) for found in others):
        return []
    return [f"{path}: no test_{path.stem}.py anywhere in tests/"]


def _class_faults(path: Path) -> list[str]:
    classes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    public = [node.name for node in classes if not node.name.startswith("_") and not _is_dataclass(node)]
    wanted = path.stem.replace("_", "").lower()
    if len(public) == 1 and public[0].lower() == wanted:
        return []
    return [f"{path}: holds {', '.join(public) or 'no public class'}; wanted one class named like the file"]


def _is_dataclass(node: ast.ClassDef) -> bool:
    """A plain record that the part works with is no part."""
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def option_faults(package: Path, slots: Slots) -> list[str]:
    """Options that nothing reads: neither their own file nor the shared files of the room."""
    faults = []
    for rooms in slots.values():
        for path in part_files(package, rooms):
            readers = [path, *_shared_files(package, path)]
            read = {name for reader in readers for name in _attributes_read(reader)}
            faults += [f"{path}: nothing reads the option `{name}`" for name in _options(path) if name not in read]
    return faults


def _shared_files(package: Path, path: Path) -> list[Path]:
    room = package / path.relative_to(package).parts[0]
    folders = [path.parent, *[parent for parent in path.parents if room in parent.parents or parent == room]]
    shared = {found for folder in folders for found in folder.glob("*.py")}
    own = path.parent != room
    return sorted(
        found for found in shared if found.stem == "base" or found.name[0] == "_" or (own and found.parent == room)
    )


def _options(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not _is_dataclass(node)]
    fields = [node for made in classes for node in made.body if isinstance(node, ast.AnnAssign)]
    return [
        node.target.id
        for node in fields
        if isinstance(node.target, ast.Name)
        and node.target.id.islower()
        and not node.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(node.annotation)
    ]


# Words that say nothing of an option: a description is counted without them and without the option's own name.
EMPTY = {
    "a", "an", "the", "of", "for", "to", "in", "on", "by", "is", "are", "be", "as", "at", "it", "its", "this", "that",
    "which", "with", "and", "or", "option", "value", "default",
}  # fmt: skip
WORDS, LONGEST = 4, 250


def description_faults(package: Path, slots: Slots) -> list[str]:
    """Options, a family's included, whose description is missing, only says their name again, or is a page long."""
    faults: dict[str, None] = {}
    for rooms in slots.values():
        for path in part_files(package, rooms):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not _is_dataclass(node):
                    faults |= dict.fromkeys(f"{path}: {fault}" for fault in _undescribed(read_options(path, node.name)))
    return list(faults)


def _undescribed(options: Sequence[Option]) -> Iterator[str]:
    for option in options:
        if len(option.description) > LONGEST:
            yield f"the description of `{option.name}` has {len(option.description)} characters (at most {LONGEST})"
        if len(_new_words(option)) < WORDS:
            yield f"the option `{option.name}` has no description that says more than its name"


def _new_words(option: Option) -> set[str]:
    """Words of the description that neither are empty nor begin as a word of the option's name does."""
    own = {piece[:4] for piece in option.name.split("_")}
    words = re.findall(r"[^\W_]+", option.description.lower())
    return {word for word in words if word not in EMPTY and word[:4] not in own}


def _attributes_read(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


def random_faults(folders: Sequence[Path]) -> list[str]:
    """Draws from, or seeding of, the process-wide generators of random, numpy and torch."""
    faults = []
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            aliases = _aliases(tree)
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and (name := _global_draw(node, aliases)):
                    faults.append(f"{path}:{node.lineno}: {name} uses a global generator; draw from view.uniform")
    return faults


def _aliases(tree: ast.Module) -> dict[str, str]:
    """Local name -> dotted name, through import, from-import and `lazy("module")`."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            made = re.fullmatch(r"lazy\(['\"]([\w.]+)['\"]\)", ast.unparse(node.value))
            if made:
                found[node.targets[0].id] = made.group(1)
    return found


def _global_draw(call: ast.Call, aliases: Mapping[str, str]) -> str | None:
    if any(keyword.arg == "generator" for keyword in call.keywords):
        return None
    pieces = list(_dotted(call.func))
    if isinstance(call.func, ast.Attribute) and call.func.attr in TENSOR_DRAWS:
        return f".{call.func.attr}()"
    if not pieces:
        return None
    name = ".".join([aliases.get(pieces[0], pieces[0]), *pieces[1:]])
    module, _, last = name.rpartition(".")
    if pieces[0] not in aliases:
        return None
    if module in LOCAL_GENERATORS:
        return None if last in LOCAL_GENERATORS[module] else name
    return name if name.split(".")[0] == "torch" and last in TORCH_DRAWS else None


def _dotted(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        inner = list(_dotted(node.value))
        if inner:
            yield from [*inner, node.attr]
    elif isinstance(node, ast.Name):
        yield node.id
