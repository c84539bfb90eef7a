"""The inner units of a transformer block, heads and channels: where they are, and how they may change places.

A channel couples a row of `up_proj` and `gate_proj` with a column of `down_proj`; a head couples h rows of
`q_proj` (and, with its group, of `k_proj` and `v_proj`) with h columns of `o_proj`. Permuting the coupled rows and
columns together leaves the function of the block as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.models.config import text_config

DIMS = {"o_proj": 1, "down_proj": 1, "v_proj": 0, "up_proj": 0}


@dataclass(frozen=True)
class Slab:
    """A linear layer as units of `size` rows (`dim` 0) or columns (`dim` 1)."""

    name: str
    linear: nn.Linear
    dim: int
    size: int

    @property
    def units(self) -> int:
        return self.linear.weight.shape[self.dim] // self.size


def slabs(model: nn.Module, target: str) -> list[Slab]:
    """All layers called `target`, in the model's order.

    Raises:
        RecipeError: there is none, or it is no plain linear layer.
    """
    found = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] == target]
    if not found or not all(isinstance(module, nn.Linear) for _, module in found):
        raise RecipeError(f"This model has no linear layers called `{target}`.", f"Known: {', '.join(DIMS)}.")
    size = head_size(model) if target in ("o_proj", "v_proj") else 1
    return [Slab(name, module, DIMS[target], size) for name, module in found if isinstance(module, nn.Linear)]


def head_size(model: nn.Module) -> int:
    """Width of one attention head."""
    config = text_config(model)
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def spread(units: Tensor, size: int) -> Tensor:
    """Units [k] to their rows or columns [k * size]."""
    return (units[:, None] * size + torch.arange(size, device=units.device)).flatten()


def unit_order(units: int, first: Sequence[int], second: Sequence[int]) -> Tensor:
    """(first only), (both), (second only), the rest: `first` and `second` are then one range each."""
    one, two = set(first), set(second)
    front = [*sorted(one - two), *sorted(one & two), *sorted(two - one)]
    return torch.tensor(front + [unit for unit in range(units) if unit not in one | two])


def head_order(heads: int, groups: int, values: Sequence[int], outputs: Sequence[int]) -> Tensor:
    """An order of the query heads that keeps every head in its group.

    Groups change places among themselves and heads within a group: the picked `outputs` become one range if at
    most two groups are picked in part. `values` are picked key-value heads.
    """
    size = heads // groups
    if size == 1:
        return unit_order(heads, values, outputs)
    picked = set(outputs)
    members = [list(range(group * size, (group + 1) * size)) for group in range(groups)]
    counts = [sum(head in picked for head in group) for group in members]
    partial = [group for group in range(groups) if 0 < counts[group] < size]
    full = [group for group in range(groups) if counts[group] == size]
    empty = [group for group in range(groups) if counts[group] == 0]
    order = []
    for group in [*partial[:1], *full, *partial[1:], *empty]:
        last = group in partial[:1]  # its picked heads come last, next to the full groups
        order += sorted(members[group], key=lambda head: ((head in picked) == last, head))
    return torch.tensor(order)


@dataclass(frozen=True)
class UnitBlock:
    """An attention or a feed-forward part of a layer, whose units can be permuted together."""

    name: str
    module: nn.Module
    heads: bool

    def order(self, size: int, picked: dict[str, list[int]]) -> Tensor:
        """The order that makes the picked units of its layers contiguous."""
        chosen = {key: picked.get(f"{self.name}.{key}", []) for key in DIMS}
        if not self.heads:
            return unit_order(_of(self.module, "down_proj").in_features, chosen["up_proj"], chosen["down_proj"])
        heads, groups = (_of(self.module, key).out_features // size for key in ("q_proj", "v_proj"))
        return head_order(heads, groups, chosen["v_proj"], chosen["o_proj"])

    @torch.no_grad()
    def permute(self, order: Tensor, size: int) -> None:
        """Put unit order[i] at place i in every coupled layer, in place.

        Raises:
            RecipeError: the block holds something per head that is not known here.
        """
        if not self.heads:
            for key in ("up_proj", "gate_proj"):
                if hasattr(self.module, key):
                    _permute(_of(self.module, key), 0, order)
            return _permute(_of(self.module, "down_proj"), 1, order)
        self._refuse_unknown(size)
        queries, keys = spread(order, size), spread(group_order(order, self.groups(size)), size)
        for key, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            _permute(_of(self.module, key), 0, rows)
        return _permute(_of(self.module, "o_proj"), 1, queries)

    def groups(self, size: int) -> int:
        """Key-value heads."""
        return _of(self.module, "v_proj").out_features // size

    def plain(self) -> bool:
        """Whether nothing is put on top of its layers."""
        keys = ("q_proj", "k_proj", "v_proj", "o_proj") if self.heads else ("up_proj", "gate_proj", "down_proj")
        return all(isinstance(getattr(self.module, key, None), nn.Linear | None) for key in keys)

    def _refuse_unknown(self, size: int) -> None:
        inside = [name for name, _ in self.module.named_parameters(recurse=False)]
        for name, child in self.module.named_children():
            if not isinstance(child, nn.Linear):
                inside += [f"{name}.{key}" for key, value in child.named_parameters() if value.numel() != size]
        if inside:
            raise RecipeError(
                f"{self.name}.{inside[0]} may belong to single heads, which cannot be permuted without it.",
                "Leave `permute` off: the result is the same.",
            )


def group_order(order: Tensor, groups: int) -> Tensor:
    """The order of the groups that an order of heads implies."""
    size = len(order) // groups
    return order[::size] // size


def blocks(model: nn.Module) -> Iterator[UnitBlock]:
    """The blocks of a model whose layers have the usual names."""
    for name, module in model.named_modules():
        if all(hasattr(module, key) for key in ("q_proj", "k_proj", "v_proj", "o_proj")):
            yield UnitBlock(name, module, True)
        elif all(hasattr(module, key) for key in ("up_proj", "down_proj")):
            yield UnitBlock(name, module, False)


def _of(module: nn.Module, key: str) -> nn.Linear:
    return getattr(module, key)


def _permute(linear: nn.Linear, dim: int, order: Tensor) -> None:
    order = order.to(linear.weight.device)
    linear.weight.copy_(linear.weight.index_select(dim, order))
    if dim == 0 and linear.bias is not None:
        linear.bias.copy_(linear.bias[order])
