"""LoRA updates folded into the weights while a model only generates or scores.

As a branch of its own an adapter costs two more products and a sum per layer at every step of decoding; folded into
the weight it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn

from luthier.models.weights import Owners

SHARE = 0.5
"""Share of the free memory that a second copy of the adapted weights may take."""


@contextmanager
def folded_in(module: nn.Module) -> Iterator[None]:
    """PEFT's LoRA layers as plain linear ones inside the scope; afterwards the weights have their old bits.

    On processors, in float32 or wider: shorter types would round small additions away, and on a GPU a second copy of
    the weights is dear. Layers that are disabled, merged, of another form, or share their weight stay as they are,
    as do all where memory is short.
    """
    layers = _foldable_layers(module)
    copied_bytes = sum(layer.get_base_layer().weight.nbytes for layer in layers)
    if not layers or copied_bytes > SHARE * psutil.virtual_memory().available:
        yield
        return
    originals: list[tuple[Any, torch.Tensor]] = []
    try:
        with torch.no_grad():
            for layer in layers:
                weight = layer.get_base_layer().weight
                originals.append((layer, weight.data))
                # PEFT merges in place: a copy, because subtracting the update again would round.
                weight.data = weight.data.clone()
                layer.merge()
        yield
    finally:
        for layer, weights in originals:
            layer.merged_adapters.clear()  # not `unmerge`, which subtracts
            layer.get_base_layer().weight.data = weights


def _foldable_layers(module: nn.Module) -> list[Any]:
    """The LoRA layers that can be folded; none in a model without adapters, which needs no PEFT."""
    if not hasattr(module, "peft_config"):
        return []
    from peft.tuners.lora import Linear

    # A weight of two layers (a tied embedding) must not get the update of one of them.
    owners = Owners(module)
    layers = []
    for layer in module.modules():
        if type(layer) is not Linear or layer.merged or layer.disable_adapters or any(layer.lora_bias.values()):
            continue
        base = layer.get_base_layer()
        if type(base) is not nn.Linear or base.weight.device.type != "cpu":
            continue
        if base.weight.dtype in (torch.float32, torch.float64) and owners.of(base.weight) == 1:
            layers.append(layer)
    return layers
