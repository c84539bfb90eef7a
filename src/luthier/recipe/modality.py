"""The modality of a recipe's model, read from its config.json, and the recipe keys that it has no use for."""

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
    """What a recipe has to say of a modality of model.

    `evaluated`: the blocks that an evaluation depends on; `foreign`: dotted keys that mean nothing here, and why;
    `rollout`: the `kind` of its `rl`, or None where it learns from records alone.
    """

    name: str
    evaluated: tuple[str, ...]
    rollout: str | None
    foreign: Mapping[str, str] = field(default_factory=dict)


_TEXT = {
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
    """A key of MODALITIES; what is no folder here, and no config, is taken for a language model."""
    config = model.config or _config_of(model_folder(model.path, base))
    if CLASS in config:
        return "diffusion"
    return "contrastive" if config.get("model_type") in PAIRED else "language"


def model_folder(path: str, base: Path) -> Path:
    """The folder that a recipe names as its model: a packaged one by its name, else as seen from `base`."""
    return parts.PACKAGE / "models" / path if path in PACKAGED else base / Path(path).expanduser()


def _config_of(folder: Path) -> Mapping[str, Any]:
    for file in (folder / TRANSFORMER / "config.json", folder / "config.json"):
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return found if isinstance(found, dict) else {}
    return {}


def fill_in(data: dict[str, Any], base: Path, origin: Callable[[tuple[str, ...]], str]) -> None:
    """Write into a merged recipe what depends on its model's modality: the kind of its rollout, a denoiser's sampling.

    What is malformed is refused later, with all other keys.

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
    """Raise RecipeError for the first key that is set to something and means nothing for this modality of model."""
    modality = MODALITIES[modality_of(settings.model, base)]
    default = Settings.model_validate({"model": settings.model.path, "data": {"train": settings.data.train}})
    for key, reason in modality.foreign.items():
        path = tuple(key.split("."))
        if _at(settings, path) != _at(default, path):
            leaf = next(_below(_at(settings, path), _at(default, path), path))
            raise RecipeError(
                f"{origin(leaf)}: {key}: of {modality.name} this says nothing: {reason}.", "Leave it out of the recipe."
            )


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = getattr(value, key)
    return value.model_dump() if hasattr(value, "model_dump") else value


def _below(value: Any, default: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The keys under a path that differ from their default, deepest first; the path itself where there are none."""
    if isinstance(value, Mapping) and isinstance(default, Mapping):
        for key, item in value.items():
            if item != default.get(key):
                yield from _below(item, default.get(key), (*path, key))
    yield path
