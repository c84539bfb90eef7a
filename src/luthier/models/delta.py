"""A difference between two models: named, fp32, small where little changed, and undone bit for bit.

A change either *adds* to a tensor (all of it, some flat positions, or some rows or columns) or *sets* it. Each
carries a hash of the tensor that it was taken against, so that it is never put on another model unnoticed.
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


@dataclass(frozen=True)
class Change:
    """What happens to one tensor.

    Attributes:
        values: fp32. Dense: the tensor's shape. With `index`: [k] for flat positions, else the tensor's shape
            with k rows (`dim` 0) or columns (`dim` 1).
        base: hash of the tensor that the change was taken against, see `tensor_hash`.
        shape: of the tensor.
        verb: `add` to what is there, or `set` (dense only: heads, buffers).
        index: k distinct places, or None: everywhere.
        dim: what the places count: None flat positions, 0 rows, 1 columns.
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
        """Put entries as `read` gave them in their place."""
        if self.index is None:
            tensor.copy_(entries)
        elif self.dim is None:
            tensor.view(-1)[self.index.to(tensor.device).long()] = entries
        else:
            tensor.index_copy_(self.dim, self.index.to(tensor.device).long(), entries)

    def apply(self, tensor: Tensor, coefficient: float = 1.0) -> None:
        """Change `tensor` in place; the sum is made in fp32 or wider and rounded once."""
        values = self.values.to(tensor.device)
        if self.verb == "add":
            entries = self.read(tensor)
            wide = torch.promote_types(entries.dtype, torch.float32)
            values = entries.to(wide).add_(values.to(wide), alpha=coefficient)
        self.write(tensor, values.to(tensor.dtype))

    def dense(self) -> Tensor:
        """The values as a tensor of the full shape, 0 where nothing changes."""
        full = torch.zeros(self.shape, dtype=self.values.dtype)
        self.write(full, self.values)
        return full


@dataclass(frozen=True)
class WeightDelta:
    """Changes by the name of the parameter or buffer."""

    changes: Mapping[str, Change]

    def merge_into(self, model: nn.Module, coefficient: float = 1.0) -> None:
        """Change the model for good.

        Args:
            coefficient: of everything added.

        Raises:
            ModelError: the model lacks a tensor, or holds another than the one the delta was taken against.
            RecipeError: a coefficient for a tensor that is set.
        """
        self._refuse_scaling(coefficient)
        with torch.no_grad():
            for change, tensor in self._targets(model):
                change.apply(tensor, coefficient)

    @contextmanager
    def applied(self, model: nn.Module, coefficient: float = 1.0) -> Iterator[nn.Module]:
        """The changed model inside the scope; after it the same bits as before. Raises as `merge_into`."""
        self._refuse_scaling(coefficient)
        targets = self._targets(model)
        with torch.no_grad():
            kept = [change.read(tensor) for change, tensor in targets]
        try:
            with torch.no_grad():
                for change, tensor in targets:
                    change.apply(tensor, coefficient)
            yield model
        finally:
            with torch.no_grad():
                for (change, tensor), entries in zip(targets, kept, strict=True):
                    change.write(tensor, entries)

    def _refuse_scaling(self, coefficient: float) -> None:
        fixed = [name for name, change in self.changes.items() if change.verb == "set"]
        if fixed and coefficient != 1.0:
            raise RecipeError(f"{fixed[0]} is set, not added: a coefficient of {coefficient} has no meaning there.")

    def _targets(self, model: nn.Module) -> list[tuple[Change, Tensor]]:
        tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        for name, change in self.changes.items():
            if name not in tensors:
                raise ModelError(f"The delta changes {name}, which this model does not have.")
            if tensor_hash(tensors[name]) != change.base:
                raise ModelError(
                    f"The delta was taken against another {name} than this model's.",
                    "Apply it to the model that it was trained from, before anything else changes that.",
                )
        return [(change, tensors[name].detach()) for name, change in self.changes.items()]

    def save(self, file: Path) -> None:
        """Write a safetensors file; places as int32 where they fit."""
        tensors: dict[str, Tensor] = {}
        about = {}
        for name, change in self.changes.items():
            tensors[f"values/{name}"] = change.values.contiguous()
            if change.index is not None:
                tensors[f"index/{name}"] = _small(change.index)
            about[name] = {"verb": change.verb, "dim": change.dim, "base": change.base, "shape": change.shape}
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, file, metadata={"luthier_delta": str(FORM), "changes": json.dumps(about)})

    @classmethod
    def load(cls, file: Path) -> WeightDelta:
        """Read what `save` wrote.

        Raises:
            ModelError: it is no delta, or damaged.
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
        deltas: with their coefficients; all taken against the same model.
        choose: for a tensor that several deltas set, which of them (its place in `deltas`) is taken.

    Raises:
        RecipeError: two deltas set a tensor and nothing is chosen, one sets what another adds to, or their
            bases differ.
    """
    names = list(dict.fromkeys(name for delta, _ in deltas for name in delta.changes))
    return WeightDelta({name: _composed(name, deltas, (choose or {}).get(name)) for name in names})


def _composed(name: str, deltas: Sequence[tuple[WeightDelta, float]], chosen: int | None) -> Change:
    found = [(place, delta.changes[name], c) for place, (delta, c) in enumerate(deltas) if name in delta.changes]
    if len({change.base for _, change, _ in found}) > 1:
        raise RecipeError(f"The deltas were taken against different tensors {name}.")
    verbs = {change.verb for _, change, _ in found}
    if verbs == {"add"}:
        return _sum([(change, c) for _, change, c in found])
    if len(verbs) > 1:
        raise RecipeError(f"One delta sets {name} and another adds to it.", "Compose deltas of one kind.")
    if chosen is None and len(found) > 1:
        raise RecipeError(f"{len(found)} deltas set {name}.", f"Choose one: choose={{'{name}': 0}}.")
    taken = next((change for place, change, _ in found if chosen in (None, place)), None)
    if taken is None:
        raise RecipeError(f"Delta {chosen} was chosen for {name} and does not set it.")
    return taken


def _sum(found: Sequence[tuple[Change, float]]) -> Change:
    """Places of one kind are united; anything else becomes dense."""
    first = found[0][0]
    indices = [change.index for change, _ in found if change.index is not None]
    if len(indices) < len(found) or len({change.dim for change, _ in found}) > 1:
        total = torch.stack([c * change.dense() for change, c in found]).sum(0)
        return Change(total, first.base, first.shape)
    index, places = torch.unique(torch.cat([index.long() for index in indices]), return_inverse=True)
    dim = first.dim or 0
    scaled = torch.cat([c * change.values for change, c in found], dim)
    shape = list(scaled.shape)
    shape[dim] = len(index)
    return Change(
        scaled.new_zeros(shape).index_add_(dim, places, scaled), first.base, first.shape, "add", index, first.dim
    )


def tensor_hash(tensor: Tensor) -> str:
    """A hash of shape and values, the same whether the tensor was loaded as float32 or bfloat16."""
    rounded = tensor.detach().to(torch.bfloat16).cpu().reshape(-1).contiguous()
    digest = hashlib.sha256(str(tuple(tensor.shape)).encode())
    digest.update(rounded.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def _small(index: Tensor) -> Tensor:
    return index.int() if not len(index) or int(index.max()) < 2**31 else index.long()
