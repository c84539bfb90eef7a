"""Values that the layers of a forward can read, also where activation checkpointing computes the layers again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from luthier.keyed import seed56

ASIDE = "aside"
"""Name of a context value: True where a forward's backward is of another loss than the trained one.

A layer's own backward cannot tell: `ctx.needs_input_grad` is True for parameters that `autograd.grad` was not asked
for.
"""

_VALUES: ContextVar[Mapping[str, Any] | None] = ContextVar("forward", default=None)


def context_value(name: str) -> Any:
    """The value of this name in the forward in progress, or None."""
    return (_VALUES.get() or {}).get(name)


@contextmanager
def forward_context(**values: Any) -> Iterator[None]:
    """Let layers of the forwards inside read these values, besides those of enclosing contexts."""
    token = _VALUES.set({**(_VALUES.get() or {}), **values})
    try:
        yield
    finally:
        _VALUES.reset(token)


class _RestoredContext(AbstractContextManager[None]):
    """The values of a forward, for its recomputation. Reentrant: checkpointed layers may be nested."""

    def __init__(self, values: Mapping[str, Any] | None):
        self.values = values
        self.tokens: list[Any] = []

    def __enter__(self) -> None:
        self.tokens.append(_VALUES.set(self.values))

    def __exit__(self, *_error: object) -> None:
        _VALUES.reset(self.tokens.pop())


def checkpoint_layers(module: nn.Module) -> None:
    """Keep no activations within layers: they are computed again in the backward, in the context of their forward."""
    # Newer versions of transformers call the second by the first name.
    enable: Any = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), _RestoredContext(_VALUES.get()))})


@contextmanager
def same_draws(key: str, device: torch.device) -> Iterator[None]:
    """Dropout drawn from `key` alone: two forwards under one key drop the same. Draws outside are not affected."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed56(key))
        yield
