"""What the engine sees of a denoiser, and how those of diffusers are called."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.diffusion.levels import Prediction, velocity_of
from luthier.errors import ModelError
from luthier.parts import lazy
from luthier.types import Batch

Condition = Mapping[str, Tensor]
Call = Callable[[nn.Module, Tensor, Tensor, Condition], Tensor]
PREFIX = "condition:"
"""Row streams of this prefix are what a denoiser is told besides x and the level: labels, prompt embeddings."""


class DenoiserPolicy:
    """A denoiser as objectives and solvers see it.

    Args:
        module: any network.
        call: how it is called: (module, x [R,...], level [R], condition) → prediction like x.
        prediction: what it predicts.
    """

    modality = "diffusion"

    def __init__(self, module: nn.Module, call: Call | None = None, prediction: Prediction = "velocity"):
        self.module = module
        self.call = call or call_of(module)
        self.prediction: Prediction = prediction
        self.references: dict[str, Any] = {}
        self.companions: dict[str, Any] = {}
        self.sets: dict[str, Any] = {}

    def predict(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """The module's own prediction at x [R,...] and level [R], like x."""
        dtype = next(self.module.parameters()).dtype
        told = {name: values.to(dtype) if values.is_floating_point() else values for name, values in condition.items()}
        return self.call(self.module, x.to(dtype), level.to(dtype), told)

    def velocity(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """The velocity ε - x₀ that the prediction implies, in the type of x (at least float32)."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return velocity_of(self.predict(x, level, condition).to(wide), self.prediction, x.to(wide), level)

    def condition(self, batch: Batch) -> dict[str, Tensor]:
        """What the batch's row streams tell besides the data."""
        return {n.removeprefix(PREFIX): s.values for n, s in batch.streams.items() if n.startswith(PREFIX)}


def plain(module: nn.Module, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
    """module(x, level, **condition)."""
    return module(x, level, **condition)


def stable_diffusion_3(module: nn.Module, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
    """SD3Transformer2DModel: latents [R,C,H,W]; condition `text` [R,L,E] and `pooled` [R,P]."""
    return module(
        hidden_states=x,
        timestep=1000 * level,
        encoder_hidden_states=condition["text"],
        pooled_projections=condition["pooled"],
        return_dict=False,
    )[0]


def flux(module: nn.Module, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
    """FluxTransformer2DModel: latents [R,C,H,W] in patches of 2×2; `text`, `pooled`, and `guidance` if distilled."""
    rows, channels, height, width = x.shape
    patches = x.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    down, right = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    places = torch.stack([torch.zeros_like(down), down, right], -1).reshape(-1, 3).to(x)
    out = module(
        hidden_states=patches.reshape(rows, -1, 4 * channels),
        timestep=level,
        encoder_hidden_states=condition["text"],
        pooled_projections=condition["pooled"],
        guidance=condition.get("guidance"),
        img_ids=places,
        txt_ids=x.new_zeros(condition["text"].shape[1], 3),
        return_dict=False,
    )[0]
    return out.reshape(rows, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


CALLS: Mapping[str, Call] = {"SD3Transformer2DModel": stable_diffusion_3, "FluxTransformer2DModel": flux}


def call_of(module: nn.Module) -> Call:
    """How a module is called, by the class of the network itself (an adapter around it changes nothing)."""
    own = module.get_base_model() if hasattr(module, "get_base_model") else module  # pyright: ignore[reportCallIssue]
    return CALLS.get(type(own).__name__, plain)


def load_denoiser(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network that a diffusers folder (`config.json` and safetensors) holds.

    Raises:
        ModelError: it is of a class that we do not know how to call, or diffusers is not installed.
    """
    name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    if name not in CALLS:
        raise ModelError(f"{folder} holds a {name}.", f"Known: {', '.join(CALLS)}.")
    try:
        kind = getattr(lazy("diffusers"), name)
    except ModuleNotFoundError as error:
        raise ModelError("Denoisers from files need diffusers.", "pip install 'luthier[diffusion]'") from error
    return kind.from_pretrained(str(folder), torch_dtype=dtype, use_safetensors=True)
