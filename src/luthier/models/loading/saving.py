"""Saving tried before a training, and what was saved read back after it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from luthier.errors import ModelError, RunError
from luthier.models.config import text_config
from luthier.models.loading.load import ModelSettings, load_module
from luthier.models.logits import difference, tolerance, trial_logits
from luthier.models.weights import tied_embeddings

SHARE = 0.5
"""Share of the free memory that the model read back may take."""
TOKENS = 64
"""Longest row that is compared."""
FLAGS = ("output_attentions", "output_hidden_states")
"""Keys of a config that only say what a forward returns besides its logits."""


@dataclass(frozen=True)
class ReadBack:
    """A saved model compared with the module in memory.

    Attributes:
        difference: of the logits of one row, as a share of the largest; None if nothing was compared.
        reason: why nothing was compared.
    """

    difference: float | None
    tokens: int = 0
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For run.json."""
        return asdict(self)


def make_savable(module: Any, whole: bool = True) -> list[str]:
    """Try to write a model's configuration, and switch off flags for which transformers refuses to.

    Args:
        whole: whether the configuration will be saved; an adapter's folder has none of the model.

    Returns what was changed, in sentences.

    Raises:
        ModelError: the configuration cannot be written, so the training would be lost.
    """
    if not hasattr(getattr(module, "config", None), "save_pretrained"):  # a denoiser's config is a plain mapping
        return []
    error = _config_error(module)
    if error is None:
        return []
    configs = {id(config): config for config in (module.config, text_config(module))}.values()
    dropped = [flag for flag in FLAGS if any(getattr(config, flag, False) for config in configs)]
    for flag in dropped:
        for config in configs:
            setattr(config, flag, False)
    if dropped and _config_error(module) is None:
        return [f"`{flag}` of config.json is off: a model with it cannot be saved." for flag in dropped]
    if not whole:
        return []
    text = " ".join(str(error).split())[:300]
    raise ModelError(
        f"The model could not be saved after the training: {text}", "Correct the config.json of the model."
    )


def emptied_row(model: Any) -> int | None:
    """The row of tied embeddings that loading would set to zero whatever was saved in it; None if there is none.

    The family's initialisation runs on a small embedding that is marked as loaded, as transformers marks it. It must
    keep the padding row, which the head of tied embeddings trains.
    """
    tied = tied_embeddings(model)
    padding = None if tied is None else getattr(model.get_input_embeddings(), "padding_idx", None)
    if padding is None or not hasattr(model, "_init_weights"):
        return None
    small = nn.Embedding(padding + 1, 2, padding_idx=padding)
    weight: Any = small.weight.requires_grad_(False).fill_(1.0)
    weight._is_hf_initialized = True
    try:
        from transformers.initialization import guard_torch_init_functions

        with torch.random.fork_rng(), torch.no_grad(), guard_torch_init_functions():
            model._init_weights(small)
    except Exception:  # another form of initialisation: what was saved is read back after the training
        return None
    return padding if not bool(weight[padding].any()) else None


def _config_error(module: Any) -> Exception | None:
    generation = getattr(module, "generation_config", None)
    with tempfile.TemporaryDirectory() as folder:
        try:
            module.config.save_pretrained(folder)
            # A saved model leaves an unusable generation config to its own repair, so only the model's counts.
            if generation is not None:
                generation.to_dict()
        except Exception as error:
            return error
    return None


def read_back(folder: Path, settings: ModelSettings, module: nn.Module, ids: Sequence[int]) -> ReadBack:
    """Load a saved model, and compare the logits of one row with those of the module in memory.

    Args:
        settings: of the model that was trained; the folder is read with their attention and permission for code.

    Raises:
        RunError: the logits differ by more than rounding explains, or the folder cannot be loaded.
    """
    row = list(ids[:TOKENS])
    before = trial_logits(module, row)
    if before is None:
        return ReadBack(None, reason="the model cannot be tried on a row of tokens")
    if not bool(before.isfinite().all()):
        return ReadBack(None, reason="the trained model's logits are not finite numbers")
    weight = next(module.parameters())
    needed = sum(p.nbytes for p in module.parameters())
    if needed > SHARE * _free(weight.device):
        return ReadBack(None, reason=f"a second model takes {needed / 1e9:.1f} GB, and the memory is short")
    dtype = str(weight.dtype).removeprefix("torch.")
    try:
        loaded, _ = load_module(folder, settings, dtype, weight.device)
    except ModelError as error:
        raise RunError(f"What was saved in {folder} cannot be loaded: {error.message}", error.hint) from error
    after = trial_logits(loaded.eval(), row)
    apart = float("inf") if after is None else difference(before, after)
    if apart > tolerance(module):
        raise RunError(
            f"What was saved in {folder} is not the trained model: the logits of a row differ by {apart:.2g} of the"
            " largest.",
            "The folder is kept. transformers or PEFT loses weights of this family when it saves or loads; another"
            " tuner, such as `full` or `lora`, may save others.",
        )
    return ReadBack(apart, len(row))


def _free(device: torch.device) -> int:
    """Bytes of free memory on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
