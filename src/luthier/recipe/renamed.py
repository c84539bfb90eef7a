"""Keys of older recipes under their names of today; origins and errors name the old key too.

`rollout:` at the top is `rl: {kind: denoise}`, and `sample:` is `evaluate.sample`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier import parts
from luthier.errors import RecipeError
from luthier.recipe.merge import DEFAULT, Key, Layer
from luthier.recipe.sampling import Denoise

RENAMED: Mapping[str, Key] = {"rollout": ("rl",), "sample": ("evaluate", "sample")}
"""Old key at the top of a recipe → the path of its block now."""


def with_new_names(layer: Layer) -> Layer:
    """The layer with its old keys renamed.

    Raises:
        RecipeError: a layer writes an old key and the new one.
    """
    data, lines, renamed = dict(layer.data), dict(layer.lines), dict(layer.renamed)
    for old, new in RENAMED.items():
        if old not in data:
            continue
        block = data.pop(old)
        where = layer.origin((old,))
        lines |= {(*new, *key[1:]): line for key, line in layer.lines.items() if key[0] == old}
        if isinstance(block, Mapping) and old == "rollout":
            block = {"kind": "denoise", **block}
        _put(data, new, block, f"{where}: `{old}` is called `{'.'.join(new)}` now, and both are written.")
        renamed[new] = old
    return replace(layer, data=data, lines=lines, renamed=renamed) if renamed else layer


def _put(data: dict[str, Any], path: Key, block: Any, complaint: str) -> None:
    """Set a block under a path, whose upper blocks are copied. Raises RecipeError(complaint) if the path is set."""
    for key in path[:-1]:
        upper = data.get(key)
        if upper is not None and not isinstance(upper, Mapping):
            return  # anything but a block is refused where all keys are checked
        data[key] = data = dict(upper or {})
    if data.get(path[-1]) is not None:
        raise RecipeError(complaint, "Keep one of them.")
    data[path[-1]] = block


def lock_with_new_names(data: dict[str, Any], origins: dict[Key, str]) -> None:
    """Rename the old keys of a lock in place.

    A lock has every default written out. Old locks of language models hold the defaults of diffusion models, too: these
    blocks are dropped.
    """
    rollout, sample = data.pop("rollout", None), data.pop("sample", None)
    if isinstance(sample, dict) and any(origins.get(("sample", key), DEFAULT) != DEFAULT for key in sample):
        data["evaluate"] = {**(data.get("evaluate") or {}), "sample": sample}
        _move(origins, ("sample",), ("evaluate", "sample"))
    written = isinstance(rollout, dict) and {"kind": "denoise", **rollout} != Denoise().model_dump(
        include={*rollout, "kind"}
    )
    if isinstance(rollout, dict) and data.get("rl") is None and (written or _learns_from_samples(data)):
        data["rl"] = {"kind": "denoise", **rollout}
        origins.pop(("rl",), None)
        _move(origins, ("rollout",), ("rl",))
    for key in [key for key in origins if key[0] in RENAMED]:
        del origins[key]


def _move(origins: dict[Key, str], old: Key, new: Key) -> None:
    for key in [key for key in origins if key[: len(old)] == old]:
        origins[(*new, *key[len(old) :])] = origins.pop(key)


def _learns_from_samples(data: Mapping[str, Any]) -> bool:
    """Whether a locked recipe trains an objective of the package that reads rollouts of diffusion models."""
    train = data.get("train")
    objective = train.get("objective") if isinstance(train, Mapping) else None
    for member in objective if isinstance(objective, list) else [objective]:
        spec = member.get("objective", member) if isinstance(member, Mapping) else None
        kind = spec.get("kind") if isinstance(spec, Mapping) else None
        for entry in parts.catalogue("objective"):
            if entry.name == kind and "optimality" in entry.constants.get("READS", ()):
                return True
    return False
