"""What a model folder may not do: bring code, name files elsewhere, or be its own base."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luthier.errors import ModelError
from luthier.parts import catalogue

INDEX_FILES = "*.safetensors.index.json"


def refuse_code(folder: Path, spec: Any) -> None:
    """Check that the tuner of a model folder is one of the package, and names no file in its options.

    Raises:
        ModelError: it is a file, which would run, or unknown.
    """
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    files = [text for text in _texts(spec) if text.endswith(".py")]
    if files:
        raise ModelError(
            f"{folder} brings code of its own: its tuner names the file {files[0]}, which would run.",
            "If you trust it: model: {path: ..., remote_code: true}.",
        )
    if kind not in {entry.name for entry in catalogue("tuner")}:
        raise ModelError(f"{folder} was trained with the tuner `{kind}`, which is not one of this version.")


def refuse_files_elsewhere(folder: Path) -> None:
    """Check that the index of a model in several files names files of its folder alone.

    What lies elsewhere is not hashed, and two models would pass for one.

    Raises:
        ModelError: the index cannot be read, or names a file outside.
    """
    for index in folder.glob(INDEX_FILES):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{index} is no index of weights: {error}.", "Download the model again.") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelError(f"{index} names {name!r}, which is no file of safetensors in its folder.")


def refuse_circle(folder: Path, visited: set[Path]) -> None:
    """Check that an adapter is not its own base, at any distance; `visited` collects the folders of the chain.

    Raises:
        ModelError: the chain of bases comes back to a folder.
    """
    resolved = folder.resolve()
    if resolved in visited:
        raise ModelError(f"The adapter {folder} is its own base.", "Correct `base_model_name_or_path` in its config.")
    visited.add(resolved)


def _texts(spec: Any) -> Iterator[str]:
    if isinstance(spec, str):
        yield spec
    elif isinstance(spec, Mapping):
        for option in spec.values():
            yield from _texts(option)
    elif isinstance(spec, list):
        for option in spec:
            yield from _texts(option)
