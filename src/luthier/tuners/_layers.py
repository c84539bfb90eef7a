"""Linear layers of a model: find them by name, replace them, save their differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import nn

from luthier.errors import RecipeError
from luthier.models.delta import WeightDelta

ALL = "all-linear"
Targets = Literal["all-linear"] | Sequence[str]
Layer = TypeVar("Layer", bound=nn.Module)


class Replacement(nn.Linear):
    """A layer that replaces a linear layer and shares its weight and bias (no copy).

    MERGES: its tuner leaves a plain linear layer behind, before adapters on top of it are merged.
    """

    MERGES = True

    def __init__(self, linear: nn.Linear):
        # On the meta device, so that no weight is allocated only to be dropped in the next line.
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def with_weight(self, weight: Any) -> nn.Linear:
        """An ordinary linear layer with this weight [out,in] and the shared bias."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        layer.weight, layer.bias = weight, self.bias
        return layer


def linear_layers(model: nn.Module, targets: Targets, part: str, *, head: bool) -> list[tuple[str, nn.Linear]]:
    """The linear layers with these last names, or all of them, in the model's order.

    Args:
        targets: last names such as `q_proj`, or `all-linear`.
        part: the tuner, for the message.
        head: whether the output embedding may be included.

    Raises:
        RecipeError: the model has no such layer.
    """
    excluded = None if head else _output_embeddings(model)
    layers = []
    for name, module in layers_of(model, nn.Linear):
        if module is not excluded and (targets == ALL or name.rpartition(".")[2] in targets):
            layers.append((name, module))
    if not layers:
        names = "" if isinstance(targets, str) else f" called {', '.join(targets)}"
        raise RecipeError(f"tuner `{part}` finds no linear layers{names}.", "Name layers of this model in `targets`.")
    return layers


def adapter_layers(model: nn.Module, targets: Targets) -> Iterator[tuple[str, Any]]:
    """The layers that PEFT puts an adapter beside: these names, or every product with a matrix but the last."""
    from transformers.pytorch_utils import Conv1D

    head = _output_embeddings(model)
    for name, layer in model.named_modules():
        if targets == ALL:
            wanted = isinstance(layer, nn.Linear | Conv1D) and layer is not head
        else:
            named = any(name == target or name.endswith(f".{target}") for target in targets)
            wanted = named and isinstance(layer, nn.Linear | nn.Embedding | Conv1D)
        if wanted:
            yield name, layer


def _output_embeddings(model: nn.Module) -> nn.Module | None:
    """The output embedding, which only language models have."""
    embeddings = getattr(model, "get_output_embeddings", None)
    return None if embeddings is None else embeddings()


def layers_of(model: nn.Module, kind: type[Layer]) -> Iterator[tuple[str, Layer]]:
    """All modules of one class by name, in the model's order."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, kind))


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the module with this dotted name."""
    parent, _, key = name.rpartition(".")
    setattr(model.get_submodule(parent), key, layer)


def save_delta(delta: WeightDelta, folder: Path) -> None:
    """Write the differences from the base model to `delta/` in the folder of the complete model."""
    delta.save(folder / "delta" / "delta.safetensors")


def save_without(model: Any, folder: Path, own: Callable[[str], bool]) -> None:
    """Write the model without the tensors that only a tuner's layers have, so that transformers can load it.

    Args:
        own: whether a tensor of this name belongs to the tuner.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if not own(name)}
    model.save_pretrained(folder, state_dict=state)
