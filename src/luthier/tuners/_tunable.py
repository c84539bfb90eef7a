"""Which layers may be tuned: one answer for all tuners, with the reason where it is no.

A tuner that changes a linear layer's weight, or computes the product in its place, assumes that the layer is that
product and nothing else, that its weight is an array of real numbers, and that no other layer reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from luthier.errors import RecipeError
from luthier.models import logits
from luthier.models.weights import Owners, is_product, is_quantised, tried
from luthier.tuners._layers import Replacement

BYPASSED = "the model reads its weight without calling the layer"


def refuse_quantised(model: nn.Module, tuner: str) -> None:
    """Raise RecipeError if a model's weights are quantised: a tuner that changes weights cannot train them."""
    quantised = [name for name, weight in model.named_parameters() if is_quantised(weight)]
    if quantised:
        raise RecipeError(
            f"tuner `{tuner}` changes weights, and {len(quantised)} weights of this model are quantised, the first"
            f" {quantised[0]}.",
            "`lora` trains beside quantised weights; or start from the model in bfloat16 or float32.",
        )


def is_plain(layer: nn.Module) -> bool:
    """Whether a linear layer is the product with its weight and nothing else; a hook may change what comes out."""
    return is_product(layer) and not (layer._forward_hooks or layer._forward_pre_hooks)


def objection(layer: nn.Linear, owners: Owners, *, changes: bool = True) -> str | None:
    """Why our own tuners cannot replace a linear layer; None if they can.

    Args:
        changes: whether the tuner changes the layer's weight; one that leaves it alone may share it.
    """
    if is_quantised(layer.weight):
        return f"its weight is quantised ({type(layer).__name__})"
    if not is_plain(layer):
        return f"`{type(layer).__name__}` computes more than the product with its weight"
    if changes and owners.of(layer.weight) > 1:
        return f"its weight belongs to {owners.of(layer.weight)} layers"
    return None


def objection_to_adapter(layer: nn.Module, owners: Owners) -> str | None:
    """Why an adapter beside a layer would be wrong; None if it can stand there.

    The layer keeps its own forward, so it may be quantised or compute more than a product. It must return one array
    of the width that the adapter adds to. Merging must reach no other layer; tied embeddings are untied then.
    """
    weight: Any = layer.weight
    if owners.untied(weight) > 1:
        return f"its weight belongs to {owners.of(weight)} layers"
    if not isinstance(layer, nn.Linear) or isinstance(layer, Replacement) or is_quantised(weight):
        return None
    if not is_product(layer) and tried(layer) is None:
        return f"`{type(layer).__name__}` does not return one vector for each vector"
    return None


def refuse_layers(objections: dict[str, str], tuner: str) -> None:
    """Raise RecipeError for layers that were asked for by name and cannot be tuned."""
    if objections:
        name, reason = next(iter(objections.items()))
        more = f" (and {len(objections) - 1} more)" if len(objections) > 1 else ""
        raise RecipeError(
            f"tuner `{tuner}` cannot train {name}{more}: {reason}.", "Name other layers of this model in `targets`."
        )


def tunable(
    layers: Sequence[tuple[str, nn.Linear]], model: nn.Module, tuner: str, *, named: bool, changes: bool = True
) -> list[tuple[str, nn.Linear]]:
    """The layers of these that our own tuners can replace.

    Args:
        named: whether the recipe asks for these layers by name, and not for all that there are.

    Raises:
        RecipeError: a layer that was asked for by name cannot be tuned, or no layer can.
    """
    objections = objections_to(layers, model, changes=changes)
    rest = [(name, layer) for name, layer in layers if name not in objections]
    if named or not rest:
        refuse_layers(objections, tuner)
    return rest


def objections_to(layers: Sequence[tuple[str, nn.Linear]], model: nn.Module, *, changes: bool = True) -> dict[str, str]:
    """The layers of these that our own tuners cannot replace, and why; layers that they have replaced are fine."""
    owners = Owners(model)
    objections, rest = {}, {}
    for name, layer in layers:
        if isinstance(layer, Replacement):
            continue
        if reason := objection(layer, owners, changes=changes):
            objections[name] = reason
        else:
            rest[name] = layer
    return objections | dict.fromkeys(logits.bypassed(model, rest), BYPASSED)
