"""The kinds of a model's weights: embeddings, head, dense layers, routed experts, their router, norms, convolutions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from luthier.models.config import text_config
from luthier.models.weights import tied_embeddings

EMBEDDINGS, TIED, HEAD = "embeddings", "embeddings and head (tied)", "head"
EXPERTS, ROUTER, DENSE = "routed experts", "router", "dense layers"
STACKED, CONVOLUTIONS, VECTORS = "stacked matrices", "convolutions", "norms and biases"
LISTED = re.compile(r"(^|\.)experts\.\d+\.")
"""A weight in a list of experts, by its path."""


@dataclass(frozen=True)
class Weight:
    """A weight of a model before any tuning. A quantised one counts the numbers that it stands for."""

    name: str
    tensor: Tensor
    kind: str
    numbers: int


def weights_of(model: nn.Module) -> list[Weight]:
    """Every weight once, in the model's order, with its kind, which its shape and its neighbours tell."""
    experts = _expert_blocks(model)
    weights, counted = [], set()
    for name, layer in model.named_modules():
        for key, tensor in layer._parameters.items():
            if tensor is not None and id(tensor) not in counted:
                counted.add(id(tensor))
                path = f"{name}.{key}" if name else key
                weights.append(Weight(path, tensor, _kind(path, layer, tensor, model, experts), _numbers(layer, key)))
    return weights


def _kind(path: str, layer: nn.Module, tensor: Tensor, model: Any, experts: dict[str, int]) -> str:
    if isinstance(layer, nn.Embedding):
        return TIED if tensor is tied_embeddings(model) else EMBEDDINGS
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return CONVOLUTIONS if tensor.dim() > 1 else VECTORS
    if _of_experts(path, layer, tensor, set(experts.values())):
        return EXPERTS
    if tensor.dim() == 3:
        return STACKED
    if any(
        path.startswith(block) and count in tensor.shape[:1] + tensor.shape[-1:] for block, count in experts.items()
    ):
        return ROUTER
    if tensor.dim() < 2:
        return VECTORS
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return HEAD if layer is head else DENSE


def _of_experts(path: str, layer: nn.Module, tensor: Tensor, counts: set[int]) -> bool:
    """Whether a weight is one expert's, in a list of experts, or all experts', in a stack with their biases.

    Shared experts, which every token meets, are dense layers.
    """
    stacked = any(other is not None and other.dim() == 3 for other in layer._parameters.values())
    return bool(LISTED.search(path)) or (stacked and tensor.dim() > 1 and tensor.shape[0] in counts)


def _expert_blocks(model: Any) -> dict[str, int]:
    """Path of each block that holds routed experts → their number."""
    config: Any = text_config(model) if hasattr(model, "config") else None
    declared = config.to_dict() if hasattr(config, "to_dict") else {}
    counts = {number for key, number in declared.items() if "expert" in key and isinstance(number, int) and number > 1}
    return dict(_stacks(model, counts))


def _stacks(model: nn.Module, counts: set[int]) -> Iterator[tuple[str, int]]:
    for name, layer in model.named_modules():
        above = name.rpartition(".")[0] + "."
        if name.rpartition(".")[2] == "experts" and isinstance(layer, nn.ModuleList):
            yield above, len(layer)
        stacked = [p for p in layer._parameters.values() if p is not None and p.dim() == 3]
        if stacked and not isinstance(layer, nn.Conv1d) and stacked[0].shape[0] in counts:
            yield above, stacked[0].shape[0]


def _numbers(layer: Any, key: str) -> int:
    """How many numbers a weight has; packed ones hold several in an element."""
    tensor = layer._parameters[key]
    if key == "weight" and isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features if not tensor.is_floating_point() else tensor.numel()
    return tensor.numel()
