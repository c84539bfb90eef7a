"""How much each unit of a layer matters, by weight, activation or gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.models.kernels.head import target_logprob
from luthier.models.policy import TokenPolicy
from luthier.tuners._units import Slab
from luthier.types import Batch


def weight_scores(slab: Slab) -> Tensor:
    """L2 norm of each unit's rows or columns, [units]."""
    return _norms(slab.linear.weight.detach(), slab)


def activation_scores(model: nn.Module, slabs: Sequence[Slab], batch: Batch) -> list[Tensor]:
    """Mean |a| over the batch's tokens of what flows through each unit: a column's input, a row's output."""
    real = batch.example_of >= 0
    means: dict[str, Tensor] = {}

    def watch(slab: Slab) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            flow = (inputs[0] if slab.dim == 1 else output)[real]
            means[slab.name] = flow.abs().float().mean(0).view(slab.units, slab.size).mean(1)

        return hook

    with _hooks([slab.linear.register_forward_hook(watch(slab)) for slab in slabs]), torch.no_grad():
        TokenPolicy(model).hidden(batch)
    return [means[slab.name] for slab in slabs]


def gradient_scores(model: nn.Module, slabs: Sequence[Slab], batch: Batch) -> list[Tensor]:
    """L2 norm of each unit's gradient of the batch's log-likelihood; one layer's gradient exists at a time."""
    norms: dict[str, Tensor] = {}

    def watch(slab: Slab) -> Callable[[Tensor], None]:
        def hook(weight: Tensor) -> None:
            assert weight.grad is not None
            norms[slab.name] = _norms(weight.grad, slab)
            weight.grad = None

        return hook

    rows, columns = batch.targets()
    targets, token_weights, policy = batch.ids[rows, columns], batch.weights[rows, columns], TokenPolicy(model)
    weights = [slab.linear.weight for slab in slabs]
    for weight in weights:
        weight.requires_grad_(True)
    with _hooks([w.register_post_accumulate_grad_hook(watch(s)) for w, s in zip(weights, slabs, strict=True)]):
        likelihood = policy.head.sum(
            policy.hidden(batch), lambda piece, logits: token_weights[piece] * target_logprob(logits, targets[piece])
        )
        likelihood.backward()
    for weight in weights:
        weight.requires_grad_(False)
    return [norms[slab.name] for slab in slabs]


def _norms(values: Tensor, slab: Slab) -> Tensor:
    squares = values.float().square().sum(1 - slab.dim)
    return squares.view(slab.units, slab.size).sum(1).sqrt()


@contextmanager
def _hooks(handles: list[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
