"""Denoisers in the formats of diffusers: the folder of a pipeline or a transformer, or a config; and the scheduler."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier.diffusion.policy import CALLS, load_denoiser
from luthier.errors import ModelError, nearest
from luthier.parts import lazy
from luthier.recipe.fingerprint import model_digest

TRANSFORMER, SCHEDULER = "transformer", "scheduler"
FLOW = "FlowMatchEulerDiscreteScheduler"
EVEN_LEVELS = {"_class_name": FLOW, "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False}
"""The scheduler of a model without one: evenly spaced levels."""


@dataclass(frozen=True)
class Denoiser:
    """A network in eval mode, its scheduler's config, and an id of weights and config."""

    module: nn.Module
    scheduler: Mapping[str, Any]
    weights_id: str


def open_denoiser(folder: Path, dtype: torch.dtype = torch.float32) -> Denoiser:
    """The denoiser in a pipeline's folder (`transformer/`, `scheduler/`), or in the folder of a transformer.

    Raises:
        ModelError: the folder has no weights, `CALLS` lacks the network, or the scheduler is none of flow matching.
    """
    inner = folder / TRANSFORMER if (folder / TRANSFORMER / "config.json").is_file() else folder
    files = sorted(inner.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{inner} has no *.safetensors.", "Save the transformer with diffusers' `save_pretrained`.")
    identity = model_digest([inner / "config.json", *files])
    file = folder / SCHEDULER / "scheduler_config.json"
    scheduler = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else EVEN_LEVELS
    if scheduler.get("_class_name") != FLOW:
        raise ModelError(
            f"{file} is a {scheduler.get('_class_name')}; Luthier trains denoisers on the straight path ({FLOW}).",
            "Models that predict noise on another schedule are not supported.",
        )
    _quiet()
    return Denoiser(load_denoiser(inner, dtype).eval(), scheduler, identity)


def make_denoiser(config: Mapping[str, Any], seed: int, dtype: torch.dtype = torch.float32) -> Denoiser:
    """A denoiser with random weights from `seed`; `config` is the content of a config.json of diffusers.

    Raises:
        ModelError: `CALLS` lacks the class, the class refuses the options, or diffusers is not installed.
    """
    name = config["_class_name"]
    if name not in CALLS:
        close = nearest(str(name), list(CALLS))
        raise ModelError(
            f"model.config: there is no denoiser `{name}`.",
            f"Did you mean `{close}`?" if close else f"Known: {', '.join(CALLS)}.",
        )
    try:
        network = getattr(lazy("diffusers"), name)
    except ModuleNotFoundError as error:
        raise ModelError("Denoisers need diffusers.", "pip install 'luthier[diffusion]'") from error
    options = {key: value for key, value in config.items() if not key.startswith("_")}
    # The weights must not depend on what was drawn before, nor change what is drawn after.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            module = network(**options)
        except (TypeError, ValueError) as error:
            raise ModelError(f"model.config: {name} cannot be made: {error}.") from error
    identity = json.dumps([config, seed], sort_keys=True)
    _quiet()
    return Denoiser(module.to(dtype).eval(), EVEN_LEVELS, hashlib.sha256(identity.encode()).hexdigest()[:16])


def _quiet() -> None:
    """Keep the notices and progress bars of diffusers out of our output; its errors still appear."""
    logging = lazy("diffusers.utils.logging")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def shift_of(scheduler: Mapping[str, Any], shape: Sequence[int]) -> float:
    """The `shift` of `solver_levels` that the scheduler asks for, for latents of this shape [C,H,W].

    A dynamic shift grows with the number of 2×2 patches: exp(μ), with μ linear in that number through the points
    (`base_image_seq_len`, `base_shift`) and (`max_image_seq_len`, `max_shift`), as diffusers has it.
    """
    if not scheduler.get("use_dynamic_shifting"):
        return float(scheduler.get("shift", 1.0))
    patches = math.prod(shape[1:]) / 4
    few, many = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    low, high = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    return math.exp(low + (high - low) * (patches - few) / (many - few))
