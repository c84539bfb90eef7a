"""Names: a public class name stands once in the package, and variables say what they hold."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

NAMELESS = ("found", "one", "place", "given", "made", "said", "told", "seen", "shown")
"""Words that say that something is there, and not what it is."""
NO_BETTER = ("result", "value", "item", "data", "out")
"""What a nameless variable must not be renamed to."""


def class_faults(package: Path, slots: Mapping[str, Sequence[str]]) -> list[str]:
    """Public class names that two files share; parts of different slots may, as recipes tell them apart by the slot."""
    slot_of_room = {room: slot for slot, rooms in slots.items() for room in rooms}
    files: dict[str, dict[str, Path]] = {}
    for path in sorted(package.rglob("*.py")):
        room = next((room for room in slot_of_room if (package / room) in path.parents), None)
        is_part = room is not None and not path.name.startswith("_") and path.stem != "base"
        owner = f"part:{slot_of_room[room]}" if room is not None and is_part else str(path)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                files.setdefault(node.name, {})[owner] = path
    return [
        f"the class `{name}` stands in {', '.join(map(str, owners.values()))}"
        for name, owners in files.items()
        if len(owners) > 1 and not all(owner.startswith("part:") for owner in owners)
    ]


def nameless(package: Path, words: Sequence[str]) -> Counter[str]:
    """How often each of the words is bound: assigned, or the variable of a loop or a comprehension."""
    counts: Counter[str] = Counter()
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in words:
                counts[node.id] += 1
    return counts
