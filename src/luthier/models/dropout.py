"""Dropout of a model: how much there is, and training without it.

Where an objective compares two passes of one model, dropout in one of them alone would be part of the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


def dropouts(module: nn.Module) -> list[float]:
    """The probabilities above 0 with which parts of the module drop values, each once, in ascending order.

    Models keep them in layers of torch, or as numbers that a forward gives to a function.
    """
    levels: set[float] = set()
    for layer in module.modules():
        if isinstance(layer, _DropoutNd):
            levels.add(layer.p)
        else:
            levels |= set(_numbers(layer).values())
    return sorted(levels - {0.0})


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """The module as it evaluates, but with gradients; afterwards every submodule has its old mode.

    Activation checkpointing and batch statistics, which the mode also decides, stay as they are.
    """
    modes = [(layer, layer.training) for layer in module.modules()]
    numbers: list[tuple[nn.Module, dict[str, float]]] = []
    for layer, training in modes:
        checkpointed = training and getattr(layer, "gradient_checkpointing", False)
        if checkpointed:
            numbers.append((layer, _numbers(layer)))
            vars(layer).update(dict.fromkeys(_numbers(layer), 0.0))
        layer.training = bool(checkpointed) or (training and isinstance(layer, _BatchNorm))
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training
        for layer, own in numbers:
            vars(layer).update(own)


def _numbers(layer: nn.Module) -> dict[str, float]:
    """The attributes of a layer that are probabilities of dropping: `dropout`, `attention_dropout`, `layerdrop`, ..."""
    named: dict[str, Any] = {name: number for name, number in vars(layer).items() if "drop" in name.lower()}
    return {name: number for name, number in named.items() if isinstance(number, float) and 0.0 < number < 1.0}
