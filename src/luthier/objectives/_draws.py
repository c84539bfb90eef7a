"""Random numbers without a generator: functions of (seed, update, row, position, draw) alone."""

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
    # A hash of the key, not a generator: the numbers are the same on every rank, in any order and under any split.
    base = keys ^ mix(torch.tensor(update.seed * 1_000_003 + update.index, device=keys.device))
    draw = torch.arange(1, draws + 1, device=keys.device)
    return ((mix(base[:, None] + draw * 0x2545F4914F6CDD1D) >> 11) & (2**53 - 1)).double() / 2**53


def position_keys(batch: Batch) -> Tensor:
    """One int64 per target: a hash of (row id, position in the row), [N]."""
    rows, columns = batch.targets()
    hashes = [signed64(example) for example in batch.examples]
    owner = torch.tensor(hashes, device=batch.ids.device)[batch.example_of[rows, columns]]
    return mix(owner ^ mix(batch.position_of[rows, columns]))


def mix(keys: Tensor) -> Tensor:
    """Elementwise 64-bit integer hash (the finaliser of splitmix64, Steele et al. 2014), wrapping in int64."""

    def logical_shift(x: Tensor, by: int) -> Tensor:
        # torch shifts int64 arithmetically; the mask clears the copies of the sign bit.
        return (x >> by) & ((1 << (64 - by)) - 1)

    # The algorithm's uint64 constants, written as the int64 of the same bits.
    keys = keys + -7046029254386353131
    keys = (keys ^ logical_shift(keys, 30)) * -4658895280553007687
    keys = (keys ^ logical_shift(keys, 27)) * -7723592293110705685
    return keys ^ logical_shift(keys, 31)
