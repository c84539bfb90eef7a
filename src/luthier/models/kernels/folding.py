"""Low-rank additions as part of the weights, while a model only answers.

Beside a layer they are two more products and a sum at every step of decoding; within it they cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn

SHARE = 0.5
"""Of the free memory, what a second copy of the adapted weights may take."""


@contextmanager
def folded_in(module: nn.Module) -> Iterator[None]:
    """LoRA layers of PEFT as plain ones inside the scope; after it the weights have the bits that they had.

    On processors, in float32 or wider: shorter types would round small additions away, and on a GPU a second copy of
    the weights is dear. Layers that are switched off, merged, of another form, or share their weight stay as they are,
    as do all where memory is short.
    """
    layers = _layers(module)
    needed = sum(layer.get_base_layer().weight.nbytes for layer in layers)
    if not layers or needed > SHARE * psutil.virtual_memory().available:
        yield
        return
    kept: list[tuple[Any, torch.Tensor]] = []
    try:
        with torch.no_grad():
            for layer in layers:
                weight = layer.get_base_layer().weight
                kept.append((layer, weight.data))
                weight.data = weight.data.clone()
                layer.merge()
        yield
    finally:
        for layer, weights in kept:
            layer.merged_adapters.clear()
            layer.get_base_layer().weight.data = weights


def _layers(module: nn.Module) -> list[Any]:
    """The LoRA layers that can be folded; none of a model without adapters, for which PEFT need not be there."""
    if not hasattr(module, "peft_config"):
        return []
    from peft.tuners.lora import Linear

    owned = Counter(id(weight) for piece in module.modules() for weight in piece._parameters.values())
    return [
        piece
        for piece in module.modules()
        if type(piece) is Linear
        and not (piece.merged or piece.disable_adapters or any(piece.lora_bias.values()))
        and type(base := piece.get_base_layer()) is nn.Linear
        and base.weight.device.type == "cpu"
        and base.weight.dtype in (torch.float32, torch.float64)
        and owned[id(base.weight)] == 1
    ]
