"""Which runs compute the same: hashes of what a recipe, its part files and its data make a run compute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.recipe.resolve import Recipe

NOT_PART_OF_A_RUN = ("name", "compare", "observe", "out")
"""Keys that decide what is compared, shown or written where, and not what a run computes."""


def settings_of_run(recipe: Recipe) -> dict[str, Any]:
    """The blocks of a recipe that a run's numbers may depend on."""
    return {key: block for key, block in recipe.data.items() if key not in NOT_PART_OF_A_RUN}


def fingerprint(recipe: Recipe) -> str:
    """Hash of what a run computes. Of part files it reads the text, not the path: a lock's copy counts as the file."""
    return digest(_with_texts(settings_of_run(recipe), recipe.text_of_parts))


def task_fingerprint(recipe: Recipe, sets: Sequence[str], files: Mapping[str, str]) -> str:
    """Hash of what a task of a comparison computes, its evaluation and its data included.

    It is made of the parts' paths and texts rather than of `fingerprint`, because folders of comparisons hold it so.

    Args:
        sets: what is evaluated, in order.
        files: sha256 of each local data file, by its path in the recipe.
    """
    return digest([settings_of_run(recipe), dict(recipe.text_of_parts), list(sets), dict(files)])


def digest(content: Any) -> str:
    """SHA-256 of plain content as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def model_digest(files: Sequence[Path]) -> str:
    """Sixteen digits by which the files of a model are known: their names and contents, in the order given."""
    lines = "".join(f"{file.name} {file_digest(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _with_texts(content: Any, texts: Mapping[str, str]) -> Any:
    """The content with the text of each part file in place of its path."""
    if isinstance(content, dict):
        return {key: _with_texts(below, texts) for key, below in content.items()}
    if isinstance(content, list):
        return [_with_texts(below, texts) for below in content]
    return texts.get(content, content) if isinstance(content, str) else content
