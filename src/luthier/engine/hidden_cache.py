"""Hidden states of a reference at known rows: computed once, then read from a file instead of asking it again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from luthier.data.batches import collate, micro_batches
from luthier.models.policy import Reference
from luthier.run_folder import cannot_write
from luthier.types import Batch, Row

Report = Callable[[int, int], None]
"""(done, total), in rows."""


class HiddenStateCache:
    """Hidden states [N,D] in a file, at the targets of rows; those of a row stand together.

    Read piece by piece, so that they take no memory. A batch may ask for some of a row's targets, not for others.

    Args:
        width: D.
        dtype: the type that the model computes in.
    """

    def __init__(self, file: Path, rows: Sequence[Row], width: int, dtype: torch.dtype):
        self.file, self.width, self.dtype = file, width, dtype
        self.targets = {row.id: numpy.flatnonzero(row.streams["weights"].values[1:]) + 1 for row in rows}
        ends = numpy.cumsum([len(places) for places in self.targets.values()])
        self.starts = dict(zip(self.targets, [0, *ends[:-1].tolist()], strict=True))
        self.bytes = int(ends[-1]) * width * dtype.itemsize if len(ends) else 0

    @property
    def known(self) -> bool:
        """Whether they have been computed."""
        return self.file.is_file() and self.file.stat().st_size == self.bytes

    def compute(self, reference: Reference, rows: Sequence[Row], tokens: int, report: Report) -> None:
        """Ask the reference at every row, `tokens` positions per forward; the file appears when it is whole.

        Raises:
            RunError: the disk is full, or the file cannot be written.
        """
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
        with path.open("wb") as out:
            for micro in micro_batches(rows, tokens, "padded"):
                hidden = reference.hidden(collate(micro, "padded").to(device)).to(self.dtype).cpu()
                pieces = hidden.split([len(self.targets[row.id]) for row in micro])
                for row, piece in zip(micro, pieces, strict=True):
                    out.seek(self._offset(row.id))
                    out.write(piece.view(torch.uint8).numpy().tobytes())
                done += len(micro)
                report(done, len(rows))

    def at(self, batch: Batch) -> Tensor:
        """Those of a batch's N targets, [N,D], in `batch.targets()` order."""
        at = batch.targets()
        if len(at[0]) == 0:
            return torch.empty(0, self.width, dtype=self.dtype, device=batch.ids.device)
        owners, places = (index[at].cpu().numpy() for index in (batch.example_of, batch.position_of))
        found = numpy.empty((len(owners), self.width * self.dtype.itemsize), dtype=numpy.uint8)
        for owner in numpy.unique(owners):
            here = owners == owner
            found[here] = self._read(batch.examples[owner], places[here])
        return torch.from_numpy(found).view(self.dtype).to(batch.ids.device)

    def _offset(self, record: str) -> int:
        return self.starts[record] * self.width * self.dtype.itemsize

    def _read(self, record: str, places: numpy.ndarray) -> numpy.ndarray:
        targets, each = self.targets[record], self.width * self.dtype.itemsize
        whole = numpy.fromfile(self.file, numpy.uint8, len(targets) * each, offset=self._offset(record))
        return whole.reshape(-1, each)[numpy.searchsorted(targets, places)]


class CachedReference(Reference):
    """A reference whose hidden states at the training rows are known; its head is asked as ever."""

    def __init__(self, reference: Reference, states: HiddenStateCache):
        super().__init__(reference.policy, reference.scope)
        self.states = states

    def hidden(self, batch: Batch) -> Tensor:
        return self.states.at(batch)


def state_bytes(rows: Sequence[Row], width: int, dtype: torch.dtype) -> int:
    """What the hidden states at all targets take."""
    return sum(row.targets for row in rows) * width * dtype.itemsize
