"""The inner units of a transformer block, heads and channels: their rows and columns, and how to permute them.

A channel couples a row of `up_proj` and `gate_proj` with a column of `down_proj`; a head couples h rows of
`q_proj` (and, with its group, of `k_proj` and `v_proj`) with h columns of `o_proj`. Permuting the coupled rows and
columns together does not change the function of the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import RecipeError
from luthier.models import logits
from luthier.models.config import text_config
from luthier.tuners import _tunable

DIMS = {"o_proj": 1, "down_proj": 1, "v_proj": 0, "up_proj": 0}
"""Layers that have units → the dimension of the weight [out,in] that the units divide."""
HEADED = ("o_proj", "v_proj")
"""Layers whose units are heads; the units of the others are single channels."""
WIDTHS = ("v_head_dim", "head_v_dim", "head_dim")
COUNTS = ("num_heads", "num_attention_heads", "num_v_heads")
GROUPED_COUNTS = ("num_key_value_heads", "num_kv_heads")
"""Names under which attention modules and configurations declare the width and the number of heads."""


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
    """All layers called `target` that can be trained in part, in the model's order.

    Raises:
        RecipeError: the model has no such layer, or one that is not linear; or its columns are no whole heads.
    """
    named = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] == target]
    linear = [(name, module) for name, module in named if isinstance(module, nn.Linear)]
    if not linear or len(linear) < len(named):
        raise RecipeError(
            f"This model has no linear layers called `{target}`.",
            f"`s2ft` trains layers of these names: {', '.join(DIMS)}. Other tuners, such as `lora`, know more.",
        )
    layers = []
    for name, layer in _tunable.tunable(linear, model, "s2ft", named=False):
        width = 1
        if target in HEADED:
            attention, features = model.get_submodule(name.rpartition(".")[0]), layer.weight.shape[DIMS[target]]
            width = head_width(attention, text_config(model), features, grouped=target == "v_proj")
        layers.append(UnitLayer(name, layer, DIMS[target], width))
    return layers


def head_width(attention: nn.Module, config: Any, features: int, *, grouped: bool) -> int:
    """Width of the heads of which an attention's layer reads or writes `features` numbers.

    The attention module knows the width of its own values; the config's `head_dim` may be another (that of rotary
    positions, of another kind of layer). As many heads as that gives must be declared too.

    Args:
        grouped: whether the features are those of key-value heads.

    Raises:
        RecipeError: nothing declares such heads.
    """
    counts = {_declared(holder, key) for holder in (attention, config) for key in COUNTS}
    if grouped:
        groups = _declared(attention, "num_key_value_groups") or 1
        counts |= {count // groups for count in counts if count and count % groups == 0}
        counts |= {_declared(holder, key) for holder in (attention, config) for key in GROUPED_COUNTS}
    widths = [_declared(holder, key) for holder in (attention, config) for key in WIDTHS]
    widths += [features // count for count in sorted(filter(None, counts))]
    for width in filter(None, widths):
        if features % width == 0 and features // width in counts:
            return width
    raise RecipeError(
        f"{features} features are no whole number of the heads of {type(attention).__name__}.",
        "Leave its layer out of `targets`: units of other widths are no heads.",
    )


def _declared(holder: Any, key: str) -> int | None:
    """A positive number that a module or a configuration declares."""
    try:
        number = getattr(holder, key, None)
    except Exception:  # a configuration refuses to name a number that differs between its layers
        return None
    return number if isinstance(number, int) and number > 0 else None


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
        config: the text decoder's configuration.
    """

    name: str
    module: nn.Module
    heads: bool
    config: Any = None

    @property
    def size(self) -> int:
        """Width of a head."""
        return _linear(self.module, "v_proj").out_features // self.groups if self.heads else 1

    @property
    def groups(self) -> int:
        """Number of key-value heads."""
        values = _linear(self.module, "v_proj").out_features
        return values // head_width(self.module, self.config, values, grouped=True)

    def order(self, picked: dict[str, list[int]]) -> Tensor:
        """The order [units] that makes the picked units contiguous."""
        units = {key: picked.get(f"{self.name}.{key}", []) for key in DIMS}
        if not self.heads:
            return unit_order(_linear(self.module, "down_proj").in_features, units["up_proj"], units["down_proj"])
        heads = _linear(self.module, "o_proj").in_features // self.size
        return head_order(heads, self.groups, units["v_proj"], units["o_proj"])

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Move unit order[i] to position i in every coupled layer, in place.

        Raises:
            RecipeError: the block has weights that this function does not know how to permute.
        """
        self.refuse_unknown()
        if not self.heads:
            for key in ("up_proj", "gate_proj"):
                if hasattr(self.module, key):  # not every feed-forward block is gated
                    _permute(_linear(self.module, key), 0, order)
            return _permute(_linear(self.module, "down_proj"), 1, order)
        queries, keys = spread(order, self.size), spread(group_order(order, self.groups), self.size)
        for key, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            _permute(_linear(self.module, key), 0, rows)
        return _permute(_linear(self.module, "o_proj"), 1, queries)

    def has_linear_layers(self) -> bool:
        """Whether its layers are linear; False once another tuner has wrapped one."""
        return all(isinstance(getattr(self.module, key, None), nn.Linear | None) for key in self._keys)

    @property
    def _keys(self) -> tuple[str, ...]:
        return ("q_proj", "k_proj", "v_proj", "o_proj") if self.heads else ("up_proj", "gate_proj", "down_proj")

    def refuse_unknown(self) -> None:
        """Raise RecipeError for weights that would stay behind, or whose rows are not those of the units."""
        unknown = [name for name, _ in self.module.named_parameters(recurse=False)]
        for name, child in self.module.named_children():
            if isinstance(child, nn.Linear) and name in self._keys:
                continue  # a parameter of one head's size, as a norm of q, serves all heads
            unknown += [f"{name}.{key}" for key, weight in child.named_parameters() if weight.numel() != self.size]
        sizes = {key: _linear(self.module, key).out_features for key in self._keys[:-1] if hasattr(self.module, key)}
        sizes[self._keys[-1]] = _linear(self.module, self._keys[-1]).in_features
        pairs = (("q_proj", "o_proj"), ("k_proj", "v_proj")) if self.heads else (("up_proj", "down_proj"),)
        unknown += [first for first, second in pairs if sizes[first] != sizes[second]]
        if not self.heads and sizes.get("gate_proj", sizes["up_proj"]) != sizes["up_proj"]:
            unknown.append("gate_proj")
        if unknown:
            raise RecipeError(
                f"{self.name}.{unknown[0]} may belong to single heads or channels, and `permute` cannot reorder it with"
                " them.",
                "Set `permute: false`: the result is the same.",
            )


def group_order(order: Tensor, groups: int) -> Tensor:
    """The order [groups] of the key-value groups in an order [heads] of query heads."""
    size = len(order) // groups
    return order[::size] // size


def blocks(model: nn.Module) -> Iterator[UnitBlock]:
    """The blocks of a model whose layers have the usual names; layers that another tuner wrapped count as well."""
    for name, module in model.named_modules():
        children = dict(module.named_children())  # experts hold stacked weights under such names
        if children.keys() >= {"q_proj", "k_proj", "v_proj", "o_proj"}:
            yield UnitBlock(name, module, True, text_config(model))
        elif children.keys() >= {"up_proj", "down_proj"}:
            yield UnitBlock(name, module, False, None)


def _linear(module: nn.Module, key: str) -> nn.Linear:
    return getattr(module, key)


def _permute(linear: nn.Linear, dim: int, order: Tensor) -> None:
    order = order.to(linear.weight.device)
    linear.weight.copy_(linear.weight.index_select(dim, order))
    if dim == 0 and linear.bias is not None:
        linear.bias.copy_(linear.bias[order])


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Compare a language model's logits on a few tokens before and after the block, in float32 or wider.

    Raises:
        RecipeError: they differ by more than rounding: units are coupled in a way that no name of a layer tells.
    """
    before = logits.trial_logits(model) if logits.is_exact(model) else None
    yield
    if apart := logits.moved_beyond_rounding(before, model):
        raise RecipeError(
            f"Reordering the units of {type(model).__name__} changes what it computes (logits by {apart:.1g} of the"
            " largest).",
            "Set `permute: false`: the result is the same.",
        )
