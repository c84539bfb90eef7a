"""Workspace of dual encoders: pictures and captions that should retrieve each other."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.data.arrays import arrays_of, prepare_rows
from luthier.data.batches import collate
from luthier.errors import DataError, ModelError
from luthier.evals.base import Evaluation, Item
from luthier.modalities.arrays import PICTURES, ArrayWorkspace
from luthier.models.encoder import EncoderPolicy
from luthier.models.loading.load import Loaded
from luthier.models.policy import reading
from luthier.models.quiet import quiet
from luthier.recipe import Recipe
from luthier.recipe.fingerprint import model_digest
from luthier.recipe.modality import model_folder
from luthier.runs.journal import Journal
from luthier.types import Row
from luthier.vision.pictures import as_text, pixels

INPUTS: Mapping[str, tuple[str, ...]] = {
    "pixel_values": ("pixel_values", "image"),
    "input_ids": ("input_ids", "caption"),
    "attention_mask": ("attention_mask",),
}
"""Argument of the model's forward → names of the arrays that may be passed; the first one in the data is."""
REQUIRED = ("pixel_values", "input_ids")


@dataclass(frozen=True)
class ContrastiveWorkspace(ArrayWorkspace):
    """A dual encoder of transformers, and records of a picture and a caption's token ids.

    `inputs`: argument of the model's forward → array of the data.
    """

    inputs: Mapping[str, str]

    @classmethod
    def open(
        cls, recipe: Recipe, device: torch.device, dtype: str, cache: Path | None, say: Callable[[str], None]
    ) -> ContrastiveWorkspace:
        """Load or make the model, read the arrays, and call the model on one record.

        Raises:
            DataError, ModelError: an array is missing, or the model cannot be called on the data.
        """
        settings = recipe.settings
        say("loading the model")
        model = settings.model
        if model.config is not None:
            module = _random_model(model.config, model.seed)
            # The weights follow from config and seed, so these identify them.
            described = json.dumps([model.config, model.seed], sort_keys=True)
            identity = hashlib.sha256(described.encode()).hexdigest()[:16]
        else:
            module, identity = _load(model_folder(model.path, recipe.base))
        loaded = Loaded(module.to(device=device, dtype=getattr(torch, dtype)).eval(), None, model.path, identity)
        say("preparing the data")
        prepared = prepare_rows(settings.data, recipe.base)
        workspace = cls(recipe, device, loaded, prepared, inputs_of(module, prepared.train[0]))
        try:  # now: during training the error would come after minutes, without naming the arrays
            workspace.embed(loaded.module, prepared.train[:1])
        except (RuntimeError, ValueError, IndexError) as error:
            reason, arrays = str(error).splitlines()[0], arrays_of(prepared.train)
            raise ModelError(f"{model.path} cannot read the data ({arrays}): {reason}") from error
        return workspace

    def policy(self, module: nn.Module) -> EncoderPolicy:
        return EncoderPolicy(module, self.inputs)

    def embed(self, module: nn.Module, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Pictures [R,D] and captions [R,D] as vectors of length 1, without gradient."""
        policy, pairs = self.policy(module), []
        with reading(module):
            for start in range(0, len(rows), self.micro()):
                batch = collate(rows[start : start + self.micro()]).to(self.device)
                outputs = policy.outputs(batch, ("image", "text"))
                pairs.append([functional.normalize(outputs[name].float(), dim=-1) for name in ("image", "text")])
        images, texts = zip(*pairs, strict=True)
        return torch.cat(images), torch.cat(texts)

    def matches(self, module: nn.Module, rows: Sequence[Row]) -> tuple[list[int], list[int], list[bytes]]:
        """The index of each picture's nearest caption, that of each caption's nearest picture, and the captions."""
        image, text = self.embed(module, rows)
        similarity = image @ text.T
        stream = self.inputs["input_ids"]
        captions = [numpy.ascontiguousarray(row.streams[stream].values).tobytes() for row in rows]
        return similarity.argmax(1).tolist(), similarity.argmax(0).tolist(), captions

    def score(self, module: nn.Module, name: str, journal: Journal) -> Evaluation | None:
        """Half a point if a picture's nearest caption of the set is its own, half if the caption's nearest picture is.

        Equal captions count as one caption: any of their pictures is right.
        """
        rows = self.held_out(name)
        if not rows:
            return None
        journal.phase(f"evaluate {name}", len(rows))
        texts, images, captions = self.matches(module, rows)
        journal.progress(len(rows), len(rows))
        items = []
        for index, row in enumerate(rows):
            to_text, to_picture = captions[texts[index]] == captions[index], captions[images[index]] == captions[index]
            prediction = (
                f"nearest caption: {self._caption(rows[texts[index]])}\n"
                f"nearest picture of the caption: one of {self._caption(rows[images[index]])}"
            )
            score, both = (to_text + to_picture) / 2, to_text and to_picture
            pictures = self._picture(row) if index < PICTURES else {}
            reference = self._caption(row)
            items.append(Item(row.id, "picture", reference, prediction, score, None, "retrieval", both, pictures))
        mean = sum(item.score for item in items) / len(items)
        return Evaluation(items, mean, "retrieval", "accuracy@1 of both ways, their mean", 0, True)

    def shown(self, module: nn.Module, sets: Sequence[str], journal: Journal) -> dict[str, Any]:
        """Retrieval accuracy@1 of each way."""
        accuracies = {}
        for name in sets:
            if rows := self.held_out(name):
                texts, images, captions = self.matches(module, rows)
                for way, nearest in (("picture to caption", texts), ("caption to picture", images)):
                    right = [captions[match] == captions[index] for index, match in enumerate(nearest)]
                    accuracies[f"{way}, {name}"] = sum(right) / len(right)
        return {"further": accuracies}

    def save_assets(self, folder: Path) -> None:
        """The model needs no further files: captions come as token ids."""

    def _caption(self, row: Row) -> str:
        if "label" in row.streams:
            return f"label {row.streams['label'].values}"
        return f"token ids {row.streams[self.inputs['input_ids']].values.tolist()}"

    def _picture(self, row: Row) -> dict[str, str]:
        values = row.streams[self.inputs["pixel_values"]].values
        return {"prompt": as_text(pixels(values))} if values.ndim == 3 else {}


def inputs_of(module: nn.Module, row: Row) -> dict[str, str]:
    """Argument of the forward → array of the data. An optional argument without an array is left out.

    Raises:
        DataError: the data have no array for a required argument.
    """
    parameters = inspect.signature(module.forward).parameters
    inputs: dict[str, str] = {}
    for argument, names in INPUTS.items():
        arrays = [name for name in names if name in row.streams]
        if argument in parameters and arrays:
            inputs[argument] = arrays[0]
    if missing := [name for name in REQUIRED if name not in inputs]:
        raise DataError(
            f"The data have no `{missing[0]}`: {arrays_of([row])}.",
            f"Name the array for it: `columns: {{{missing[0]}: ...}}`.",
        )
    return inputs


def _random_model(config: Mapping[str, Any], seed: int) -> nn.Module:
    """Random weights; scale and bias start where the paper has them (arXiv 2303.15343), not at the library's 0."""
    from transformers import AutoConfig, AutoModel

    quiet()
    options = {key: value for key, value in config.items() if key != "model_type"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            module = AutoModel.from_config(AutoConfig.for_model(config["model_type"], **options))
        except Exception as error:  # the library validates with types of its own
            raise ModelError(f"model.config: {config['model_type']} cannot be built: {error}") from error
    with torch.no_grad():
        module.logit_scale.fill_(math.log(10.0))
        module.logit_bias.fill_(-10.0)
    return module


def _load(folder: Path) -> tuple[nn.Module, str]:
    from transformers import AutoModel

    quiet()
    identity = model_digest([folder / "config.json", *sorted(folder.glob("*.safetensors"))])
    try:
        return AutoModel.from_pretrained(folder, use_safetensors=True), identity
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder} cannot be loaded: {str(error)[:300]}") from error
