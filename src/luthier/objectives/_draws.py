"""Random numbers without a generator: functions of (seed, update, record, position, draw) alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.keyed import signed64
from luthier.parts import lazy
from luthier.types import Batch

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.update import Update
else:
    torch = lazy("torch")


def keyed_uniform(keys: Tensor, update: Update, draws: int) -> Tensor:
    """Uniform numbers [n,draws] in [0,1), a function of (keys [n] int64, seed, update, draw) alone."""
    base = keys ^ mix(torch.tensor(update.seed * 1_000_003 + update.index, device=keys.device))
    draw = torch.arange(1, draws + 1, device=keys.device)
    return ((mix(base[:, None] + draw * 0x2545F4914F6CDD1D) >> 11) & (2**53 - 1)).double() / 2**53


def position_keys(batch: Batch) -> Tensor:
    """One int64 per target: a hash of (record id, position in the record), [N]."""
    rows, columns = batch.targets()
    names = [signed64(record) for record in batch.examples]
    owner = torch.tensor(names, device=batch.ids.device)[batch.example_of[rows, columns]]
    return mix(owner ^ mix(batch.position_of[rows, columns]))


def mix(value: Tensor) -> Tensor:
    """A 64-bit integer hash (the finaliser of splitmix64, Steele et al. 2014), wrapping in int64."""

    def shifted(x: Tensor, by: int) -> Tensor:
        return (x >> by) & ((1 << (64 - by)) - 1)

    value = value + -7046029254386353131
    value = (value ^ shifted(value, 30)) * -4658895280553007687
    value = (value ^ shifted(value, 27)) * -7723592293110705685
    return value ^ shifted(value, 31)
