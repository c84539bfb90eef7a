"""What may be assumed of a weight: that it is an array of real numbers, one layer's own, and used in one product.

Weights have several layers where the output embedding is tied, or where a model runs blocks more than once.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from luthier.models.config import text_config


def is_quantised(weight: Tensor) -> bool:
    """Whether a weight is stored in another form than an array of real numbers.

    Libraries for quantised weights store integers, or a tensor class of their own that claims to be real.
    """
    return not weight.is_floating_point() or type(weight) not in (nn.Parameter, Tensor)


def is_product(layer: nn.Module) -> bool:
    """Whether a linear layer is the product with its weight, and nothing else.

    A subclass with a forward of its own is tried: it may write the product down in another way, or quantise its
    weight first, route tokens, work in groups. Without values (on the meta device) only the shape can be compared.
    """
    if not isinstance(layer, nn.Linear):
        return False
    if type(layer).forward is nn.Linear.forward and "forward" not in vars(layer):
        return True
    output = tried(layer)
    if output is None or layer.weight.is_meta:
        return output is not None
    expected = functional.linear(_example(layer), layer.weight, layer.bias)
    rounding = 1e-5 if layer.weight.dtype in (torch.float32, torch.float64) else 2e-2
    return bool((output - expected).abs().max() <= rounding * expected.abs().max())


def tried(layer: nn.Linear) -> Tensor | None:
    """What a layer returns for a few vectors, [3,out]; None if it fails or does not return one vector for each."""
    try:
        with torch.no_grad():
            output = layer(_example(layer))
    except Exception:  # any failure means that the layer is no map of vectors
        return None
    return output if isinstance(output, Tensor) and output.shape == (3, layer.out_features) else None


def _example(layer: nn.Linear) -> Tensor:
    drawn = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    return drawn.to(layer.weight.device, layer.weight.dtype)


class Owners:
    """How many layers of a model hold each weight.

    A module that stands in several places of the model holds its weight once: a change of it reaches every place.
    """

    def __init__(self, model: nn.Module):
        held = (layer._parameters.values() for layer in model.modules())
        self._counts = Counter(id(weight) for weights in held for weight in weights if weight is not None)
        self.tied = tied_embeddings(model)

    def of(self, weight: Tensor) -> int:
        """Number of layers that hold the weight itself."""
        return self._counts[id(weight)]

    def untied(self, weight: Tensor) -> int:
        """The number that is left once input and output embedding are untied."""
        return self.of(weight) - (weight is self.tied)


def tied_embeddings(model: nn.Module) -> Tensor | None:
    """The weight that input and output embedding share; None where each has its own, or there are none."""
    get_input, get_output = (getattr(model, f"get_{side}_embeddings", None) for side in ("input", "output"))
    if get_input is None or get_output is None:
        return None
    try:
        ends = [_weight(get_input()), _weight(get_output())]
    except (NotImplementedError, AttributeError):  # encoders, and models that compute their embeddings
        return None
    return ends[0] if ends[0] is not None and ends[0] is ends[1] else None


def untie_embeddings(model: Any) -> None:
    """Give the output embedding a weight of its own, which a saved model keeps; nothing changes in what it computes."""
    head = _plain(model.get_output_embeddings())
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    # Loading and saving tie again whatever the config calls tied; an outer config may hold the text model's.
    for config in {id(config): config for config in (model.config, text_config(model))}.values():
        config.tie_word_embeddings = False
    # Saving drops what this table calls a copy of another weight.
    names = {f"{name}." for name, layer in model.named_modules() if layer is model.get_output_embeddings()}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for key in [key for key in tied if any(key.startswith(name) for name in names)]:
        del tied[key]


def _plain(layer: Any) -> Any:
    """The layer inside the wrappers of adapters."""
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    return layer


def _weight(layer: Any) -> Tensor | None:
    return getattr(_plain(layer), "weight", None)
