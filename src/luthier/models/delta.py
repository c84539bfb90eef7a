"""The difference between two models: by tensor name, in fp32, sparse where little changed, undone bit for bit.

A change either *adds* to a tensor (to all of it, to some flat positions, or to some rows or columns) or *sets* it.
Each carries a hash of the tensor that it was computed against, so applying it to another model is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from luthier.errors import ModelError, RecipeError

FORM = 1
"""Version of the file format."""


@dataclass(frozen=True)
class Change:
    """The change of one tensor.

    Attributes:
        values: fp32. Dense: the tensor's shape. With `index`: [k] for flat positions, else the tensor's shape
            with k rows (`dim` 0) or columns (`dim` 1).
        base: `tensor_hash` of the tensor that the change was computed against.
        shape: of the tensor.
        verb: `add` to the tensor, or `set` it (dense only: heads, buffers).
        index: k distinct indices, or None for a dense change.
        dim: what the indices count: None flat positions, 0 rows, 1 columns.
    """

    values: Tensor
    base: str
    shape: tuple[int, ...]
    verb: Literal["add", "set"] = "add"
    index: Tensor | None = None
    dim: int | None = None

    def read(self, tensor: Tensor) -> Tensor:
        """A copy of the entries of `tensor` that the change touches."""
        if self.index is None:
            return tensor.detach().clone()
        index = self.index.to(tensor.device).long()
        return tensor.flatten()[index] if self.dim is None else tensor.index_select(self.dim, index)

    def write(self, tensor: Tensor, entries: Tensor) -> None:
        """Overwrite the entries of `tensor` that the change touches, with a shape as `read` returns it."""
        if self.index is None:
            tensor.copy_(entries)
        elif self.dim is None:
            tensor.view(-1)[self.index.to(tensor.device).long()] = entries
        else:
            tensor.index_copy_(self.dim, self.index.to(tensor.device).long(), entries)

    def apply(self, tensor: Tensor, coefficient: float = 1.0) -> None:
        """Change `tensor` in place; the sum is computed in fp32 or wider and rounded once."""
        values = self.values.to(tensor.device)
        if self.verb == "add":
            entries = self.read(tensor)
            wide = torch.promote_types(entries.dtype, torch.float32)
            values = entries.to(wide).add_(values.to(wide), alpha=coefficient)
        self.write(tensor, values.to(tensor.dtype))

    def dense(self) -> Tensor:
        """The values in the tensor's shape, 0 where nothing changes."""
        full = torch.zeros(self.shape, dtype=self.values.dtype)
        self.write(full, self.values)
        return full


@dataclass(frozen=True)
class WeightDelta:
    """Changes by the name of the parameter or buffer."""

    changes: Mapping[str, Change]

    def merge_into(self, model: nn.Module, coefficient: float = 1.0) -> None:
        """Change the model permanently.

        Args:
            coefficient: factor of everything added.

        Raises:
            ModelError: the model lacks a tensor, or its tensor is not the one that the delta was computed against.
            RecipeError: a coefficient other than 1 for a tensor that is set.
        """
        self._refuse_scaling(coefficient)
        with torch.no_grad():
            for change, tensor in self._targets(model):
                change.apply(tensor, coefficient)

    @contextmanager
    def applied(self, model: nn.Module, coefficient: float = 1.0) -> Iterator[nn.Module]:
        """The changed model inside the scope; afterwards its old bits. Raises as `merge_into`."""
        self._refuse_scaling(coefficient)
        targets = self._targets(model)
        with torch.no_grad():  # old entries are restored, since subtracting the change again would round
            originals = [change.read(tensor) for change, tensor in targets]
        try:
            with torch.no_grad():
                for change, tensor in targets:
                    change.apply(tensor, coefficient)
            yield model
        finally:
            with torch.no_grad():
                for (change, tensor), entries in zip(targets, originals, strict=True):
                    change.write(tensor, entries)

    def _refuse_scaling(self, coefficient: float) -> None:
        fixed = [name for name, change in self.changes.items() if change.verb == "set"]
        if fixed and coefficient != 1.0:
            raise RecipeError(f"{fixed[0]} is set, not added: a coefficient of {coefficient} has no meaning there.")

    def _targets(self, model: nn.Module) -> list[tuple[Change, Tensor]]:
        # Tied weights have several names, and a delta may use any of them.
        tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        for name, change in self.changes.items():
            if name not in tensors:
                raise ModelError(f"The delta changes {name}, which this model does not have.")
            if tensor_hash(tensors[name]) != change.base:
                raise ModelError(
                    f"The delta was computed against another tensor {name} than this model's.",
                    "Apply it to the model that it was trained from, before any other change of that model.",
                )
        return [(change, tensors[name].detach()) for name, change in self.changes.items()]

    def save(self, file: Path) -> None:
        """Write a safetensors file; indices are int32 where they fit."""
        tensors: dict[str, Tensor] = {}
        about = {}
        for name, change in self.changes.items():
            tensors[f"values/{name}"] = change.values.contiguous()
            if change.index is not None:
                tensors[f"index/{name}"] = _narrow_index(change.index)
            about[name] = {"verb": change.verb, "dim": change.dim, "base": change.base, "shape": change.shape}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file, metadata={"luthier_delta": str(FORM), "changes": json.dumps(about)})

    @classmethod
    def load(cls, file: Path) -> WeightDelta:
        """Read what `save` wrote.

        Raises:
            ModelError: the file is no delta, or damaged.
        """
        try:
            with safe_open(file, framework="pt") as opened:
                metadata = opened.metadata() or {}
                tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} cannot be read: {error}.") from error
        if metadata.get("luthier_delta") != str(FORM):
            raise ModelError(f"{file} is no weight delta.", f"This version reads deltas of form {FORM}.")
        changes = {}
        for name, about in json.loads(metadata["changes"]).items():
            about["shape"] = tuple(about["shape"])
            changes[name] = Change(values=tensors[f"values/{name}"], index=tensors.get(f"index/{name}"), **about)
        return cls(changes)


def compose(deltas: Sequence[tuple[WeightDelta, float]], choose: Mapping[str, int] | None = None) -> WeightDelta:
    """Σ coefficient × delta.

    Sparse changes of one kind (positions, rows, columns) stay sparse; otherwise a tensor's sum is dense.

    Args:
        deltas: with their coefficients; all computed against the same model.
        choose: for a tensor that several deltas set, the index in `deltas` of the one to use.

    Raises:
        RecipeError: two deltas set a tensor and none is chosen, one sets a tensor that another adds to, or their
            bases differ.
    """
    names = list(dict.fromkeys(name for delta, _ in deltas for name in delta.changes))
    return WeightDelta({name: _composed(name, deltas, (choose or {}).get(name)) for name in names})


def _composed(name: str, deltas: Sequence[tuple[WeightDelta, float]], chosen: int | None) -> Change:
    """The sum of the changes of one tensor, or the chosen one of several that set it."""
    changes: dict[int, tuple[Change, float]] = {}
    for position, (delta, coefficient) in enumerate(deltas):
        if name in delta.changes:
            changes[position] = delta.changes[name], coefficient
    if len({change.base for change, _ in changes.values()}) > 1:
        raise RecipeError(f"The deltas were computed against different tensors {name}.")
    verbs = {change.verb for change, _ in changes.values()}
    if verbs == {"add"}:
        return _sum(list(changes.values()))
    if len(verbs) > 1:
        raise RecipeError(f"One delta sets {name} and another adds to it.", "Compose deltas of one kind.")
    if chosen is None and len(changes) > 1:
        raise RecipeError(f"{len(changes)} deltas set {name}.", f"Choose one: choose={{'{name}': 0}}.")
    position = next(iter(changes)) if chosen is None else chosen
    if position not in changes:
        raise RecipeError(f"Delta {chosen} was chosen for {name} and does not set it.")
    return changes[position][0]


def _sum(changes: Sequence[tuple[Change, float]]) -> Change:
    """Indices of one kind are united; changes of several kinds become dense."""
    first = changes[0][0]
    indices = [change.index for change, _ in changes if change.index is not None]
    if len(indices) < len(changes) or len({change.dim for change, _ in changes}) > 1:
        total = torch.stack([coefficient * change.dense() for change, coefficient in changes]).sum(0)
        return Change(total, first.base, first.shape)
    # Two deltas may touch the same row: `slots` maps every old index to its entry in the union.
    index, slots = torch.unique(torch.cat([index.long() for index in indices]), return_inverse=True)
    dim = first.dim or 0  # values of flat positions have one axis, [k]
    scaled = torch.cat([coefficient * change.values for change, coefficient in changes], dim)
    shape = list(scaled.shape)
    shape[dim] = len(index)
    total = scaled.new_zeros(shape).index_add_(dim, slots, scaled)
    return Change(total, first.base, first.shape, "add", index, first.dim)


def tensor_hash(tensor: Tensor) -> str:
    """A hash of shape and values, the same whether the tensor was loaded as float32 or bfloat16."""
    # Rounded to bfloat16: a model published in it and loaded as float32 has the same values, in other bits.
    rounded = tensor.detach().to(torch.bfloat16).cpu().reshape(-1).contiguous()
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    digest.update(rounded.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def _narrow_index(index: Tensor) -> Tensor:
    """int32 where it suffices: half the file's size for indices."""
    return index.int() if not len(index) or int(index.max()) < 2**31 else index.long()
