"""The modality of a recipe's model, read from its config.json, and the recipe keys that have no effect for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier import parts
from luthier.errors import RecipeError
from luthier.recipe.sampling import ROLLOUTS
from luthier.recipe.settings import Model, Settings

CLASS = "_class_name"  # how diffusers names a network in its config.json
TRANSFORMER = "transformer"  # where a pipeline's folder keeps it
PAIRED = ("siglip",)
"""Types of transformers' models with a tower for images and one for texts."""
PACKAGED = ("nano", "nano-digits")
"""Models whose weights are part of the package, each in a folder of its name."""


@dataclass(frozen=True)
class Modality:
    """The part of the recipe's grammar that models of one modality use.

    Attributes:
        name: in the plural, for messages.
        evaluated: the blocks that an evaluation depends on.
        rollout: the `kind` of its `rl`; None if it learns from records alone.
        foreign: dotted keys that have no effect for this modality → the reason.
    """

    name: str
    evaluated: tuple[str, ...]
    rollout: str | None
    foreign: Mapping[str, str] = field(default_factory=dict)


_TEXT = {
    "data.identity": "arrays are compared whole",
    "data.group_by": "records of arrays have no columns of text",
    "data.render": "there is no text to render",
    "data.targets": "a record is its own target",
    "data.max_tokens": "records have no tokens",
    "data.too_long": "records have no tokens",
    "model.attention": "the library's own choice is taken",
    "model.remote_code": "only classes of the installed library are loaded",
    "model.revision": "models of this modality come from a folder or a config",
    "train.batch.layout": "records have no tokens to lay out",
    "train.checkpointing": "it is built for the layers of language models",
    "train.select": "selectors look at the losses of language models",
    "steps": "pipelines are built for language models",
    "generate": "nothing is written in words",
    "evaluate.perplexity": "records have no tokens",
    "evaluate.retain": "retain items are questions to language models",
    "evaluate.metric": "metrics judge answers in words",
}
_SAMPLE = {"evaluate.sample": "it says how denoisers draw samples"}

MODALITIES: Mapping[str, Modality] = {
    "language": Modality(
        "language models",
        ("model", "data", "evaluate", "generate"),
        "generate",
        {**_SAMPLE, "model.config": "a language model needs its tokenizer too: name a folder, `path:`"},
    ),
    "diffusion": Modality("denoisers", ("model", "data", "evaluate", "reward"), "denoise", _TEXT),
    "contrastive": Modality(
        "image and text encoders",
        ("model", "data", "evaluate"),
        None,
        {**_TEXT, **_SAMPLE, "rl": "nothing is sampled", "reward": "nothing is sampled that could be judged"},
    ),
}
"""Modalities by name, as parts declare them (`MODALITY`); `modalities/open.py` has the workspace of each."""


def modality_of(model: Model, base: Path) -> str:
    """A key of MODALITIES, by the model's config. A model without a local config.json is taken for a language model."""
    config = model.config or _config_of(model_folder(model.path, base))
    if CLASS in config:
        return "diffusion"
    return "contrastive" if config.get("model_type") in PAIRED else "language"


def model_folder(path: str, base: Path) -> Path:
    """The folder of a recipe's model: a packaged one by its name, else relative to `base`."""
    return parts.PACKAGE / "models" / path if path in PACKAGED else base / Path(path).expanduser()


def _config_of(folder: Path) -> Mapping[str, Any]:
    for file in (folder / TRANSFORMER / "config.json", folder / "config.json"):
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return config if isinstance(config, dict) else {}
    return {}


def fill_in(data: dict[str, Any], base: Path, origin: Callable[[tuple[str, ...]], str]) -> None:
    """Set the keys that depend on the model's modality: `rl.kind`, and `evaluate.sample` of diffusion models.

    Blocks that are malformed are left as they are: they are refused later, with all other keys.

    Raises:
        RecipeError: the rollout is that of another modality of model.
    """
    try:
        modality = MODALITIES[modality_of(Model.model_validate(data.get("model")), base)]
    except ValidationError:
        return
    rollout, evaluate = data.get("rl"), data.get("evaluate")
    if isinstance(rollout, dict) and modality.rollout is not None:
        _refuse_other_rollout(rollout, modality, origin)
        data["rl"] = {"kind": modality.rollout, **rollout}
    if "evaluate.sample" not in modality.foreign and isinstance(evaluate, dict | None):
        sampling = (evaluate or {}).get("sample")
        data["evaluate"] = {**(evaluate or {}), "sample": {} if sampling is None else sampling}


def _refuse_other_rollout(
    block: Mapping[str, Any], modality: Modality, origin: Callable[[tuple[str, ...]], str]
) -> None:
    """Raise RecipeError for a block of `rl` in the grammar of another modality, by its `kind` or by its keys."""
    own = ROLLOUTS[modality.rollout or ""].model_fields
    for other in MODALITIES.values():
        if other.rollout is None or other is modality:
            continue
        theirs = ROLLOUTS[other.rollout].model_fields
        key = next((key for key in block if key in theirs and key not in own), None)
        if key or block.get("kind") == other.rollout:
            written = f"rl.{key}" if key else f"rl.kind: {other.rollout}"
            raise RecipeError(
                f"{origin(('rl', key or 'kind'))}: `{written}` is of rollouts of {other.name}; the recipe's model is"
                f" one of the {modality.name}.",
                f"Choose a method for {modality.name}; `luthier keys rl` lists the keys of their"
                f" `rl: {{kind: {modality.rollout}}}`.",
            )


def refuse_foreign(settings: Settings, base: Path, origin: Callable[[tuple[str, ...]], str]) -> None:
    """Raise RecipeError for the first key that differs from its default and has no effect for this modality."""
    modality = MODALITIES[modality_of(settings.model, base)]
    default = Settings.model_validate({"model": settings.model.path, "data": {"train": settings.data.train}})
    for key, reason in modality.foreign.items():
        path = tuple(key.split("."))
        if _at(settings, path) != _at(default, path):
            leaf = next(_below(_at(settings, path), _at(default, path), path))
            raise RecipeError(
                f"{origin(leaf)}: `{key}` has no effect for {modality.name}: {reason}.", "Leave it out of the recipe."
            )


def _at(settings: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        settings = getattr(settings, key)
    return settings.model_dump() if hasattr(settings, "model_dump") else settings


def _below(settings: Any, defaults: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The keys under a path that differ from their default, deepest first; then the path itself."""
    if isinstance(settings, Mapping) and isinstance(defaults, Mapping):
        for key, setting in settings.items():
            if setting != defaults.get(key):
                yield from _below(setting, defaults.get(key), (*path, key))
    yield path
