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

ROLLOUT_AT_THE_TOP: Mapping[str, Any] = {
    "groups": 8,
    "size": 24,
    "solver": "dpm2",
    "steps": 10,
    "level_share": 0.99,
    "updates": 1,
    "decay": 1,
    "adv_clip": 5.0,
    "adv_mode": "all",
    "min_std": None,
    "max_mean": 0.9,
    "forward": 256,
}
SAMPLE_AT_THE_TOP: Mapping[str, Any] = {"solver": "dpm2", "steps": 10, "shift": "auto"}
"""The blocks `rollout` and `sample` that every recipe held before `rl: {kind: denoise}` and `evaluate.sample`."""

ADDED_OPTIONS: Mapping[tuple[str, str], Any] = {
    ("choice", "answers"): "auto",
    ("denoise", "shift"): "auto",
    ("grpo", "k3_clamp"): None,
    ("ift", "residual_warmup"): None,
    ("lfu", "states"): "layers",
    ("loramoe", "pool"): "row",
    ("split_prefix", "prefix"): "reward",
}
"""(kind, option) → the default of an option that the part did not have when run folders were first written.

An option that a part gets later belongs here if its default computes what the part computed without it.
"""


ADDED_KEYS: Mapping[tuple[str, str], Any] = {("data", "group_by"): None, ("data", "identity"): []}
"""(block, key) → the default of a key that recipes did not have when run folders were first written."""


def hashed_form(data: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved recipe in the form that is hashed, so that a run folder of an older version can be resumed.

    The form is that of the first run folders: `rollout` and `sample` are blocks at the top, and options of
    ADDED_OPTIONS and keys of ADDED_KEYS appear only where they differ from their default.
    """
    hashed = {key: _without_added(block) for key, block in data.items()}
    for (block, key), default in ADDED_KEYS.items():
        if block in hashed and hashed[block].get(key) == default:
            hashed[block].pop(key, None)
    rl, evaluate = hashed.get("rl"), hashed.get("evaluate")
    hashed["rollout"], hashed["sample"] = dict(ROLLOUT_AT_THE_TOP), dict(SAMPLE_AT_THE_TOP)
    if isinstance(rl, dict):
        settings = {key: setting for key, setting in rl.items() if key != "kind"}
        denoises = rl.get("kind") == "denoise"
        hashed["rl"] = None if denoises else settings
        if denoises:
            hashed["rollout"] = settings
    if isinstance(evaluate, dict) and "sample" in evaluate:
        hashed["sample"] = evaluate.pop("sample")
    return hashed


def _without_added(block: Any) -> Any:
    """A copy without the options of ADDED_OPTIONS that have their default."""
    if isinstance(block, list):
        return [_without_added(member) for member in block]
    if not isinstance(block, dict):
        return block
    kind, kept = str(block.get("kind")), {}
    for key, setting in block.items():
        if (kind, key) not in ADDED_OPTIONS or setting != ADDED_OPTIONS[kind, key]:
            kept[key] = _without_added(setting)
    if kind == "lfu" and kept.get("coef", 0) is None and kept.get("auxiliary") == "lora":
        kept["coef"] = 5.0  # what null means with `auxiliary: lora`; the default was once written so
    return kept


def settings_of_run(recipe: Recipe) -> dict[str, Any]:
    """The blocks that a run's numbers may depend on, in the form that is hashed."""
    return {key: block for key, block in hashed_form(recipe.data).items() if key not in NOT_PART_OF_A_RUN}


def evaluated_blocks(recipe: Recipe, names: Sequence[str]) -> dict[str, Any]:
    """The blocks of these names, on which an evaluation of the untrained model depends, in the form that is hashed."""
    hashed, blocks = hashed_form(recipe.data), {}
    for name in names:
        blocks[name] = hashed[name]
        if name == "evaluate" and "sample" in recipe.data["evaluate"]:
            blocks["sample"] = hashed["sample"]
    return blocks


def fingerprint(recipe: Recipe) -> str:
    """Hash of what a run computes.

    Part files count by their text, not by their path: the copy that a lock holds counts as the file.
    """
    return digest(_with_texts(settings_of_run(recipe), recipe.text_of_parts))


def task_fingerprint(recipe: Recipe, sets: Sequence[str], files: Mapping[str, str]) -> str:
    """Hash of what a task of a comparison computes, its evaluation and its data included.

    Unlike `fingerprint` it counts part files by path and text, because folders of comparisons hold such hashes.

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
    """Sixteen digits by which the files of a model are known: their names and contents, in the order of `files`."""
    lines = "".join(f"{file.name} {file_digest(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _with_texts(content: Any, texts: Mapping[str, str]) -> Any:
    """The content with the text of each part file in place of its path."""
    if isinstance(content, dict):
        return {key: _with_texts(below, texts) for key, below in content.items()}
    if isinstance(content, list):
        return [_with_texts(below, texts) for below in content]
    return texts.get(content, content) if isinstance(content, str) else content
