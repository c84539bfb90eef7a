"""Importance scores of the units of a layer: by weight, activation or gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.models.kernels.head import target_logprob
from luthier.models.policy import TokenPolicy
from luthier.tuners._units import UnitLayer
from luthier.types import Batch


def weight_scores(layer: UnitLayer) -> Tensor:
    """L2 norm of each unit's rows or columns, [units]."""
    return _norms(layer.linear.weight.detach(), layer)


def activation_scores(model: nn.Module, layers: Sequence[UnitLayer], batch: Batch) -> list[Tensor]:
    """Mean |a| of each unit over the batch's tokens, [units] per layer; a: the inputs of columns, outputs of rows."""
    tokens = batch.example_of >= 0  # without padding
    means: dict[str, Tensor] = {}

    def record(layer: UnitLayer) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            activations = (inputs[0] if layer.dim == 1 else output)[tokens]
            means[layer.name] = activations.abs().float().mean(0).view(layer.units, layer.size).mean(1)

        return hook

    with _hooks([layer.linear.register_forward_hook(record(layer)) for layer in layers]), torch.no_grad():
        TokenPolicy(model).hidden(batch)
    return [means[layer.name] for layer in layers]


def gradient_scores(model: nn.Module, layers: Sequence[UnitLayer], batch: Batch) -> list[Tensor]:
    """L2 norm of each unit's gradient of the batch's log-likelihood, [units] per layer."""
    norms: dict[str, Tensor] = {}

    def record(layer: UnitLayer) -> Callable[[Tensor], None]:
        def hook(weight: Tensor) -> None:
            assert weight.grad is not None
            norms[layer.name] = _norms(weight.grad, layer)
            weight.grad = None  # so that only one layer's dense gradient is in memory at a time

        return hook

    rows, columns = batch.targets()
    targets, token_weights, policy = batch.ids[rows, columns], batch.weights[rows, columns], TokenPolicy(model)
    weights = [layer.linear.weight for layer in layers]
    for weight in weights:
        weight.requires_grad_(True)
    with _hooks([layer.linear.weight.register_post_accumulate_grad_hook(record(layer)) for layer in layers]):
        likelihood = policy.head.sum(
            policy.hidden(batch), lambda piece, logits: token_weights[piece] * target_logprob(logits, targets[piece])
        )
        likelihood.backward()
    for weight in weights:
        weight.requires_grad_(False)
    return [norms[layer.name] for layer in layers]


def _norms(matrix: Tensor, layer: UnitLayer) -> Tensor:
    squares = matrix.float().square().sum(1 - layer.dim)
    return squares.view(layer.units, layer.size).sum(1).sqrt()


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    """Removes these hooks at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
