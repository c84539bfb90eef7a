"""A language model tried on a few tokens: whether a change changed its logits, and which layers it calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LENGTH = 12
"""Tokens of a trial where no row of the run is at hand."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}
"""Largest difference of logits, as a share of the largest logit, that rounding explains. A weight that is merged is
rounded once more than one that is not; a lost or wrong tensor changes logits by as much as the training did."""


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """The model in training or eval mode, with dropout's draws left out of the global generator."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        with torch.random.fork_rng(enabled=training):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def trial_ids(model: Any, ids: Sequence[int] = ()) -> Tensor | None:
    """Token ids [1,T] to try a model on; None without weights, or where the model reads no tokens."""
    weight = next(model.parameters(), None)
    try:
        if weight is None or weight.is_meta or model.get_output_embeddings() is None:
            return None
        vocabulary = model.get_input_embeddings().weight.shape[0]
    except (AttributeError, NotImplementedError):
        return None
    # The first ids are often special tokens.
    drawn = torch.tensor(ids or range(3, 3 + LENGTH), device=weight.device)
    return drawn[None] % vocabulary


def trial_logits(model: Any, ids: Sequence[int] = ()) -> Tensor | None:
    """Logits [T,V] in float32 of a row, or of a few tokens; None where the model cannot be tried like this."""
    row = trial_ids(model, ids)
    if row is None:
        return None
    try:
        with in_mode(model, training=False), torch.no_grad():
            return model(input_ids=row, use_cache=False).logits[0].float()
    except Exception:  # it does not read tokens alone: the checks of the policy say so in words
        return None


def difference(before: Tensor, after: Tensor) -> float:
    """The largest difference of logits at the median position, as a share of the largest logit; infinite for NaN.

    The median: where rounding sends a token to another expert, one position differs and nothing is wrong.
    """
    apart = float((before - after).abs().amax(-1).median() / before.abs().max().clamp(min=1e-30))
    return apart if apart == apart else float("inf")


def moved_beyond_rounding(before: Tensor | None, model: nn.Module) -> float:
    """The difference of a model's logits from those before a change, if rounding does not explain it, else 0.

    Args:
        before: of `trial_logits`; None where they were not computed, which is no difference.
    """
    after = None if before is None else trial_logits(model)
    if before is None or after is None:
        return 0.0
    apart = difference(before, after)
    return apart if apart > tolerance(model) else 0.0


def is_exact(model: nn.Module) -> bool:
    """Whether the model computes in float32 or wider.

    In narrower types a sum that is rounded once more or in another order can move the logits of some models by a
    quarter of the largest (SmolLM2 on its special tokens), so only equal computations can be compared there.
    """
    return next(model.parameters()).dtype in (torch.float32, torch.float64)


def tolerance(model: nn.Module) -> float:
    """The difference of logits that rounding explains in a model's type."""
    return TOLERANCE.get(next(model.parameters()).dtype, TOLERANCE[torch.bfloat16])


def bypassed(model: Any, layers: Mapping[str, nn.Linear]) -> list[str]:
    """Layers of these whose weight the model reads without calling the layer, as fused kernels do.

    What stands in the place of such a layer, or beside it, computes nothing. Layers that a few tokens do not reach
    (experts, other towers) are not meant: no gradient reaches their weights.
    """
    row = trial_ids(model)
    if row is None or not layers:
        return []
    uncalled: dict[str, nn.Linear] = {}
    try:
        for training in (False, True):
            with in_mode(model, training), torch.no_grad():
                uncalled |= _uncalled(model, layers, row)
        return [] if not uncalled else _with_gradient(model, uncalled, row)
    except Exception:  # the model does not read tokens alone: the checks of the policy say so in words
        return []


def _uncalled(model: Any, layers: Mapping[str, nn.Linear], row: Tensor) -> dict[str, nn.Linear]:
    called: set[int] = set()
    handles = [layer.register_forward_hook(lambda layer, *_: called.add(id(layer))) for layer in layers.values()]
    try:
        model(input_ids=row, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: layer for name, layer in layers.items() if id(layer) not in called}


def _with_gradient(model: Any, layers: Mapping[str, nn.Linear], row: Tensor) -> list[str]:
    weights = {name: layer.weight for name, layer in layers.items() if layer.weight.is_floating_point()}
    wanted = {name: weight.requires_grad for name, weight in weights.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        with torch.enable_grad(), in_mode(model, training=True):
            total = model(input_ids=row, use_cache=False).logits.float().square().sum()
            if not total.requires_grad:
                return []
            gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(wanted[name])
    return [name for name, gradient in zip(weights, gradients, strict=True) if gradient is not None and gradient.any()]
