"""The inner units of a transformer block, heads and channels: their rows and columns, and how to permute them.

A channel couples a row of `up_proj` and `gate_proj` with a column of `down_proj`; a head couples h rows of
`q_proj` (and, with its group, of `k_proj` and `v_proj`) with h columns of `o_proj`. Permuting the coupled rows and
columns together does not change the function of the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.models.config import text_config

DIMS = {"o_proj": 1, "down_proj": 1, "v_proj": 0, "up_proj": 0}
"""Layers that have units → the dimension of the weight [out,in] that the units divide."""


@dataclass(frozen=True)
class UnitLayer:
    """A linear layer divided into units of `size` rows (`dim` 0) or columns (`dim` 1)."""

    name: str
    linear: nn.Linear
    dim: int
    size: int

    @property
    def units(self) -> int:
        return self.linear.weight.shape[self.dim] // self.size


def unit_layers(model: nn.Module, target: str) -> list[UnitLayer]:
    """All layers called `target`, in the model's order.

    Raises:
        RecipeError: the model has no such layer, or one that is not linear.
    """
    size = head_size(model) if target in ("o_proj", "v_proj") else 1
    named = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] == target]
    layers = [UnitLayer(name, module, DIMS[target], size) for name, module in named if isinstance(module, nn.Linear)]
    if not layers or len(layers) < len(named):
        raise RecipeError(f"This model has no linear layers called `{target}`.", f"Known: {', '.join(DIMS)}.")
    return layers


def head_size(model: nn.Module) -> int:
    """Width of one attention head."""
    config = text_config(model)
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def spread(units: Tensor, size: int) -> Tensor:
    """The rows or columns [k * size] of units [k], in their order."""
    return (units[:, None] * size + torch.arange(size, device=units.device)).flatten()


def unit_order(units: int, first: Sequence[int], second: Sequence[int]) -> Tensor:
    """The order [units]: first only, both, second only, the rest; `first` and `second` are then one range each."""
    a, b = set(first), set(second)
    front = [*sorted(a - b), *sorted(a & b), *sorted(b - a)]
    return torch.tensor(front + [unit for unit in range(units) if unit not in a | b])


def head_order(heads: int, groups: int, values: Sequence[int], outputs: Sequence[int]) -> Tensor:
    """An order [heads] of the query heads that keeps every head in its key-value group.

    Groups are permuted, and heads within a group. The picked `outputs` (query heads) become one range if at most two
    groups are picked in part. `values` are the picked key-value heads; they matter only where every group has one head.
    """
    size = heads // groups
    if size == 1:
        return unit_order(heads, values, outputs)
    picked = set(outputs)
    partial, full, empty = [], [], []
    for group in range(groups):
        count = sum(head in picked for head in range(group * size, (group + 1) * size))
        if count == 0:
            empty.append(group)
        elif count == size:
            full.append(group)
        else:
            partial.append(group)
    order: list[int] = []
    # The first partial group ends with its picked heads and the second begins with them: both touch the full groups.
    for group in [*partial[:1], *full, *partial[1:], *empty]:
        picked_last = group in partial[:1]
        members = range(group * size, (group + 1) * size)
        order += sorted(members, key=lambda head, last=picked_last: ((head in picked) == last, head))
    return torch.tensor(order)


@dataclass(frozen=True)
class UnitBlock:
    """The attention or feed-forward block of a layer, whose units can be permuted together.

    Attributes:
        heads: True for attention, whose units are heads; False for feed-forward, whose units are channels.
    """

    name: str
    module: nn.Module
    heads: bool

    def order(self, size: int, picked: dict[str, list[int]]) -> Tensor:
        """The order [units] that makes the picked units contiguous; `size` is the width of a head."""
        units = {key: picked.get(f"{self.name}.{key}", []) for key in DIMS}
        if not self.heads:
            return unit_order(_linear(self.module, "down_proj").in_features, units["up_proj"], units["down_proj"])
        heads, groups = (_linear(self.module, key).out_features // size for key in ("q_proj", "v_proj"))
        return head_order(heads, groups, units["v_proj"], units["o_proj"])

    @torch.no_grad()
    def permute(self, order: Tensor, size: int) -> None:
        """Move unit order[i] to position i in every coupled layer, in place.

        Raises:
            RecipeError: the block has parameters per head that this function does not know how to permute.
        """
        if not self.heads:
            for key in ("up_proj", "gate_proj"):
                if hasattr(self.module, key):  # not every feed-forward block is gated
                    _permute(_linear(self.module, key), 0, order)
            return _permute(_linear(self.module, "down_proj"), 1, order)
        self._refuse_unknown(size)
        queries, keys = spread(order, size), spread(group_order(order, self.groups(size)), size)
        for key, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            _permute(_linear(self.module, key), 0, rows)
        return _permute(_linear(self.module, "o_proj"), 1, queries)

    def groups(self, size: int) -> int:
        """Number of key-value heads."""
        return _linear(self.module, "v_proj").out_features // size

    def has_linear_layers(self) -> bool:
        """Whether its layers are linear; False once another tuner has wrapped one."""
        keys = ("q_proj", "k_proj", "v_proj", "o_proj") if self.heads else ("up_proj", "gate_proj", "down_proj")
        return all(isinstance(getattr(self.module, key, None), nn.Linear | None) for key in keys)

    def _refuse_unknown(self, size: int) -> None:
        unknown = [name for name, _ in self.module.named_parameters(recurse=False)]
        for name, child in self.module.named_children():
            if not isinstance(child, nn.Linear):  # a parameter of one head's size, as a norm of q, serves all heads
                unknown += [f"{name}.{key}" for key, weight in child.named_parameters() if weight.numel() != size]
        if unknown:
            raise RecipeError(
                f"{self.name}.{unknown[0]} may belong to single heads, and `permute` cannot reorder it with them.",
                "Set `permute: false`: the result is the same.",
            )


def group_order(order: Tensor, groups: int) -> Tensor:
    """The order [groups] of the key-value groups in an order [heads] of query heads."""
    size = len(order) // groups
    return order[::size] // size


def blocks(model: nn.Module) -> Iterator[UnitBlock]:
    """The blocks of a model whose layers have the usual names."""
    for name, module in model.named_modules():
        if all(hasattr(module, key) for key in ("q_proj", "k_proj", "v_proj", "o_proj")):
            yield UnitBlock(name, module, True)
        elif all(hasattr(module, key) for key in ("up_proj", "down_proj")):
            yield UnitBlock(name, module, False)


def _linear(module: nn.Module, key: str) -> nn.Linear:
    return getattr(module, key)


def _permute(linear: nn.Linear, dim: int, order: Tensor) -> None:
    order = order.to(linear.weight.device)
    linear.weight.copy_(linear.weight.index_select(dim, order))
    if dim == 0 and linear.bias is not None:
        linear.bias.copy_(linear.bias[order])
