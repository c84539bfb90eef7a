"""The check of what a tuner saves: loaded, and merged, the model is the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier import parts
from luthier.conformance.base import Failed
from luthier.conformance.tiny import VOCABULARY, tiny_model, tiny_rows
from luthier.conformance.training import trainer
from luthier.engine.micro_batches import Batching
from luthier.errors import LuthierError
from luthier.models.loading.load import TUNER_FILE, load_tuned
from luthier.recipe.settings import Model as ModelSettings


def check_save_and_load(tuner: Any) -> None:
    """Saved, loaded by transformers or PEFT, and merged: the logits are the same within 1e-4.

    A tuner whose MERGES is False is loaded by its own code, and its `merge` raises LuthierError.
    """
    run = trainer(parts.build("objective", "sft"), tuner, tiny_rows(), Batching(), dtype=torch.float32)
    run.train()
    ids = torch.arange(12)[None] % VOCABULARY
    with torch.no_grad(), tempfile.TemporaryDirectory() as name:
        trained = run.policy.module(input_ids=ids).logits
        tuner.save(run.policy.module, run.masters.of_model(), Path(name))
        loaded = _load(Path(name))(input_ids=ids).logits
        merged = _merged(tuner, run.policy.module)(input_ids=ids).logits
    for what, logits in (("saved and loaded", loaded), ("merged", merged)):
        error = float((logits - trained).abs().max())
        if not error <= 1e-4:
            raise Failed(f"{what}: logits differ by {error:.1e}")


def _merged(tuner: Any, module: nn.Module) -> nn.Module:
    if tuner.MERGES:
        return tuner.merge(module)
    try:
        tuner.merge(module)
    except LuthierError:
        return module
    raise Failed("MERGES is False, and `merge` goes through")


def _load(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    if (folder / TUNER_FILE).is_file():
        return load_tuned(folder, ModelSettings(path=str(folder), dtype="float32"))[0].eval()

    if (folder / "adapter_config.json").is_file():  # PEFT's format: a user would load it by PEFT
        import peft

        return peft.PeftModel.from_pretrained(tiny_model(torch.float32), str(folder)).eval()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
