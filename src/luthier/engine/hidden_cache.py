"""Hidden states of a reference at the training rows: computed once, then read from a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from luthier.data.batches import collate, micro_batches
from luthier.models.policy import Reference
from luthier.models.trial import ragged_layout
from luthier.run_folder import cannot_write
from luthier.types import Batch, Row

Report = Callable[[int, int], None]
"""(done, total), in rows."""


class HiddenStateCache:
    """Hidden states [N,D] at the targets of rows, in a file, row after row.

    A batch reads its own rows only, so that the states take no memory. It may read some of a row's targets, but no
    other positions.

    Args:
        width: D.
        dtype: the model's type.
    """

    def __init__(self, file: Path, rows: Sequence[Row], width: int, dtype: torch.dtype):
        self.file, self.width, self.dtype = file, width, dtype
        self.targets = {row.id: numpy.flatnonzero(row.streams["weights"].values[1:]) + 1 for row in rows}
        ends = numpy.cumsum([len(positions) for positions in self.targets.values()])
        self.starts = dict(zip(self.targets, [0, *ends[:-1].tolist()], strict=True))
        self.bytes = int(ends[-1]) * width * dtype.itemsize if len(ends) else 0

    @property
    def known(self) -> bool:
        """Whether the file exists and is complete."""
        return self.file.is_file() and self.file.stat().st_size == self.bytes

    def compute(self, reference: Reference, rows: Sequence[Row], tokens: int, report: Report) -> None:
        """Compute the states of every row, `tokens` positions per forward; the file appears when it is complete.

        Raises:
            RunError: the disk is full, or the file cannot be written.
        """
        # By process: two runs that compute the same states do not write into each other's file.
        half = self.file.with_suffix(f".{os.getpid()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._write(half, reference, rows, tokens, report)
            half.rename(self.file)
        except OSError as error:
            half.unlink(missing_ok=True)
            raise cannot_write(
                self.file, error, "A reference's hidden states at the training rows go there."
            ) from error

    def _write(self, path: Path, reference: Reference, rows: Sequence[Row], tokens: int, report: Report) -> None:
        device, done = next(reference.policy.module.parameters()).device, 0
        with path.open("wb") as stream:
            for micro in micro_batches(rows, tokens, ragged_layout(reference.policy, rows)):
                hidden = reference.hidden(collate(micro, "padded").to(device)).to(self.dtype).cpu()
                pieces = hidden.split([len(self.targets[row.id]) for row in micro])
                for row, piece in zip(micro, pieces, strict=True):
                    # Micro-batches are sorted by length: each row goes to its own offset.
                    stream.seek(self._offset(row.id))
                    stream.write(piece.view(torch.uint8).numpy().tobytes())  # numpy has no bfloat16
                done += len(micro)
                report(done, len(rows))

    def at(self, batch: Batch) -> Tensor:
        """Hidden states [N,D] of a batch's N targets, in `batch.targets()` order."""
        at = batch.targets()
        if len(at[0]) == 0:
            return torch.empty(0, self.width, dtype=self.dtype, device=batch.ids.device)
        owners, positions = batch.example_of[at].cpu().numpy(), batch.position_of[at].cpu().numpy()
        states = numpy.empty((len(owners), self.width * self.dtype.itemsize), dtype=numpy.uint8)
        for owner in numpy.unique(owners):
            mask = owners == owner
            states[mask] = self._read(batch.examples[owner], positions[mask])
        return torch.from_numpy(states).view(self.dtype).to(batch.ids.device)

    def _offset(self, record: str) -> int:
        return self.starts[record] * self.width * self.dtype.itemsize

    def _read(self, record: str, positions: numpy.ndarray) -> numpy.ndarray:
        """States of one row at some of its targets, as bytes [n,D · itemsize]."""
        targets, state_size = self.targets[record], self.width * self.dtype.itemsize
        states = numpy.fromfile(self.file, numpy.uint8, len(targets) * state_size, offset=self._offset(record))
        return states.reshape(-1, state_size)[numpy.searchsorted(targets, positions)]


class CachedReference(Reference):
    """A reference whose hidden states at the training rows come from a cache; logits come from its head."""

    def __init__(self, reference: Reference, states: HiddenStateCache):
        super().__init__(reference.policy, reference.scope)
        self.states = states

    def hidden(self, batch: Batch) -> Tensor:
        return self.states.at(batch)


def state_bytes(rows: Sequence[Row], width: int, dtype: torch.dtype) -> int:
    """Bytes of the hidden states at all targets."""
    return sum(row.targets for row in rows) * width * dtype.itemsize
