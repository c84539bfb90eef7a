"""The policy of a denoiser, and how the networks of diffusers are called."""

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
"""Row streams of this prefix are conditions, inputs besides x and the level: labels, prompt embeddings."""


class DenoiserPolicy:
    """A denoiser as objectives and solvers see it.

    Args:
        module: any network.
        call: (module, x [R,...], level [R], condition) → prediction like x; by default the one of `CALLS` for the class
            of the module, else `call_network`.
        prediction: which quantity the network predicts: `velocity` ε - x₀, `epsilon` or `sample` x₀.
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
        """The network's prediction at x [R,...] and level [R], like x, in the type of the weights."""
        dtype = next(self.module.parameters()).dtype
        inputs = {}
        for name, values in condition.items():
            inputs[name] = values.to(dtype) if values.is_floating_point() else values
        return self.call(self.module, x.to(dtype), level.to(dtype), inputs)

    def velocity(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        """The velocity ε - x₀ [R,...] that the prediction implies, in the type of x, at least float32."""
        # `epsilon` and `sample` divide by 1 - σ and σ, which magnifies the rounding of a half-precision type.
        dtype = torch.promote_types(x.dtype, torch.float32)
        return velocity_of(self.predict(x, level, condition).to(dtype), self.prediction, x.to(dtype), level)

    def condition(self, batch: Batch) -> dict[str, Tensor]:
        """The conditions of a batch, by their names without PREFIX."""
        conditions = {}
        for name, stream in batch.streams.items():
            if name.startswith(PREFIX):
                conditions[name.removeprefix(PREFIX)] = stream.values
        return conditions


def call_network(module: nn.Module, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
    """Any network that takes x [R,...], level [R] and the conditions by name."""
    return module(x, level, **condition)


def stable_diffusion_3(module: nn.Module, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
    """SD3Transformer2DModel: latents [R,C,H,W]; conditions `text` [R,L,E] and `pooled` [R,P]."""
    return module(
        hidden_states=x,
        timestep=1000 * level,  # SD3 reads steps of 1000; FLUX multiplies by 1000 itself
        encoder_hidden_states=condition["text"],
        pooled_projections=condition["pooled"],
        return_dict=False,
    )[0]


def flux(module: nn.Module, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
    """FluxTransformer2DModel: latents [R,C,H,W] in patches of 2×2; conditions `text` [R,L,E] and `pooled` [R,P].

    A distilled model also reads `guidance` [R].
    """
    rows, channels, height, width = x.shape
    patches = x.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    down, right = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    positions = torch.stack([torch.zeros_like(down), down, right], -1).reshape(-1, 3).to(x)
    prediction = module(
        hidden_states=patches.reshape(rows, -1, 4 * channels),
        timestep=level,
        encoder_hidden_states=condition["text"],
        pooled_projections=condition["pooled"],
        guidance=condition.get("guidance"),
        img_ids=positions,
        txt_ids=x.new_zeros(condition["text"].shape[1], 3),
        return_dict=False,
    )[0]
    unpacked = prediction.reshape(rows, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return unpacked.reshape(x.shape)


CALLS: Mapping[str, Call] = {"SD3Transformer2DModel": stable_diffusion_3, "FluxTransformer2DModel": flux}


def call_of(module: nn.Module) -> Call:
    """The function that calls a module, by the class of the network itself: an adapter around it changes nothing."""
    own = module.get_base_model() if hasattr(module, "get_base_model") else module  # pyright: ignore[reportCallIssue]
    return CALLS.get(type(own).__name__, call_network)


def load_denoiser(folder: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network in a folder of diffusers (`config.json` and safetensors).

    Raises:
        ModelError: `CALLS` lacks the class of the network, or diffusers is not installed.
    """
    name = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    if name not in CALLS:
        raise ModelError(f"{folder} holds a {name}.", f"Known: {', '.join(CALLS)}.")
    try:
        network = getattr(lazy("diffusers"), name)
    except ModuleNotFoundError as error:
        raise ModelError("Denoisers from files need diffusers.", "pip install 'luthier[diffusion]'") from error
    return network.from_pretrained(str(folder), torch_dtype=dtype, use_safetensors=True)
