"""PEFT's adapters: read with every tensor accounted for, and merged only into weights that can hold the sum."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models import logits
from luthier.models.weights import Owners, is_product, is_quantised, untie_embeddings


@contextmanager
def peft_in_words() -> Iterator[None]:
    """PEFT's warnings are dropped inside: what they hint at, as tied weights, is cured or refused here."""
    with warnings.catch_warnings():
        for category in (UserWarning, RuntimeWarning):
            warnings.filterwarnings("ignore", category=category, module="peft")
        yield


def read_adapter(module: nn.Module, folder: Path, device: torch.device | str) -> Any:
    """A PEFT model of this base with the adapter of a folder, in the base's type.

    Raises:
        ModelError: tensors that the adapter's configuration asks for are not in the folder, or tensors of the folder
            have no place in the model.
    """
    from peft import PeftModel

    options: dict[str, Any] = {"torch_device": str(device), "autocast_adapter_dtype": False}
    with peft_in_words():
        adapted: Any = PeftModel.from_pretrained(module, str(folder), **options)
        # Reading once more is what returns the names that did not fit; the first reading only warns.
        names = adapted.load_adapter(str(folder), "default", **options)
    base, missing = type(module).__name__, _not_read(adapted, names.missing_keys)
    _refuse_names(folder, base, "lacks", missing, "which would start from random numbers")
    # What stands before the row has no name in the model: PEFT reads it apart, and fails if it is not there.
    surplus = [] if adapted.active_peft_config.is_prompt_learning else names.unexpected_keys
    _refuse_names(folder, base, "holds", surplus, "for which this base has no place")
    return adapted


def _not_read(adapted: nn.Module, missing: Sequence[str]) -> list[str]:
    """The names of these whose tensor was not read under another name; some adapters have one tensor for all layers."""
    tensors = dict(adapted.named_parameters(remove_duplicate=False))
    read = {id(tensor) for name, tensor in tensors.items() if name not in missing}
    return [name for name in missing if name not in tensors or id(tensors[name]) not in read]


def _refuse_names(folder: Path, base: str, verb: str, names: Sequence[str], consequence: str) -> None:
    if names:
        raise ModelError(
            f"{folder} {verb} {len(names)} tensors of an adapter for {base}, {consequence}; the first: {names[0]}.",
            "Is this the base model that the adapter was trained on, and is the folder complete?",
        )


def lost_in_files(adapted: Any) -> list[str]:
    """Layers whose adapter PEFT would not read back from a saved folder, because it renames them on the way.

    The adapter's tensors go through the names that a folder has, and back into the model, with their own values.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    with peft_in_words():
        tensors: dict[str, Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        names = set_peft_model_state_dict(adapted, tensors)
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    lost = [name for name in names.missing_keys if name in trained]
    return list(dict.fromkeys(name.split(".lora_")[0].removeprefix("base_model.model.") for name in lost))


def refuse_unmergeable(adapted: Any) -> None:
    """Raise ModelError for an adapter that no weight of its base can hold.

    A weight of several layers would get the changes of all of them at each; a layer that computes more than the
    product with its weight would compute something else; a quantised weight would round the change away; a change of
    a bias needs a bias.
    """
    owners, layers = Owners(adapted), dict(_adapted_layers(adapted))
    bases = {name: layer.get_base_layer() for name, layer in layers.items() if hasattr(layer, "lora_A")}
    plain = {name: base for name, base in bases.items() if isinstance(base, nn.Linear)}
    bypassed = set(logits.bypassed(adapted, plain))
    for name, layer in layers.items():
        base = layer.get_base_layer()
        weight = getattr(base, getattr(layer, "parameter_name", None) or "weight", None)
        reason = None
        if weight is None:
            continue
        if is_quantised(weight):
            reason = "is quantised, and rounding would lose the change"
        elif hasattr(layer, "lora_A") and owners.untied(weight) > 1:
            reason = f"belongs to {owners.of(weight)} layers, and each would get the changes of all"
        elif isinstance(base, nn.Linear) and not (is_product(base) or getattr(base, "MERGES", False)):
            reason = f"is used by `{type(base).__name__}` in another way than in a product"
        elif name in bypassed:
            reason = "is read without calling the layer, so the adapter beside it has had no effect"
        elif any(getattr(layer, "lora_bias", {}).values()) and getattr(base, "bias", None) is None:
            reason = "has no bias beside it, and the adapter changes one (`lora_bias`)"
        if reason:
            raise ModelError(
                f"The adapter cannot be merged into its base, so the model cannot be trained further: the weight of"
                f" {name.removeprefix('base_model.model.')} {reason}.",
                "Start from the base model.",
            )


def refuse_unmerged(module: Any) -> None:
    """Raise ModelError for a model whose adapter is no change of its weights, as virtual tokens before every text.

    The module is one that `folded` left as it is. A tuner would train the base inside, and saving would lose it.
    """
    if hasattr(module, "get_base_model"):
        kind = next(iter(module.peft_config.values())).peft_type
        raise ModelError(
            f"The model has an adapter of the kind {getattr(kind, 'value', kind)}, which cannot be merged into the"
            f" weights of {type(module.get_base_model()).__name__}, so it cannot be trained further.",
            "`luthier eval` scores it. Start from the base model.",
        )


def merged(adapted: Any) -> Any:
    """The base with the adapter in its weights. A tied output embedding that changes by itself is untied first.

    Raises:
        ModelError: a weight cannot hold the change, or the merged model computes something else on a few tokens.
    """
    refuse_unmergeable(adapted)
    tied = Owners(adapted).tied
    bases = [layer.get_base_layer() for _, layer in _adapted_layers(adapted)]
    if tied is not None and any(getattr(base, "weight", None) is tied for base in bases):
        untie_embeddings(adapted.get_base_model())
    before = logits.trial_logits(adapted) if logits.is_exact(adapted) else None
    with peft_in_words():
        module = adapted.merge_and_unload()
    if apart := logits.moved_beyond_rounding(before, module):
        raise ModelError(
            f"The adapter cannot be merged into {type(module).__name__}: the logits of a few tokens then differ by"
            f" {apart:.2g} of the largest.",
            "Start from the base model.",
        )
    return module


def _adapted_layers(adapted: Any) -> Iterator[tuple[str, Any]]:
    """Layers that an adapter changes; not those inside a wrapper of PEFT, which are counted with it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return ((name, layer) for name, layer in adapted.named_modules() if isinstance(layer, BaseTunerLayer))


def adapted_weights(adapted: Any) -> Iterator[tuple[Tensor, int]]:
    """Each weight that an adapter in training changes, and how many numbers the adapter has for it."""
    for _, layer in _adapted_layers(adapted):
        weight = getattr(layer.get_base_layer(), getattr(layer, "parameter_name", None) or "weight", None)
        # A wrapper around a wrapper (several matrices of one module) would count the inner numbers twice.
        inner = {id(p) for p in layer.base_layer.parameters()} if hasattr(layer, "base_layer") else set()
        count = sum(p.numel() for p in layer.parameters() if p.requires_grad and id(p) not in inner)
        if weight is not None and count:
            yield weight, count
