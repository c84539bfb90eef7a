"""The score pass: values of a model at the targets of rows, without gradient, as columns by record.

Old and reference log-probabilities are computed here and nowhere else; an objective that names them in READS gets
them as token streams.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy
from torch import Tensor

from luthier.data.batches import Layout, collate, micro_batches
from luthier.errors import RecipeError
from luthier.models.kernels.head import target_logprob
from luthier.models.policy import Reference, TokenPolicy, reading
from luthier.models.trial import ragged_layout
from luthier.objectives._divergence import entropy
from luthier.types import Row, Stream

Column = dict[str, numpy.ndarray]
"""Record id → values [T] of its row, 0 where the position is no target."""


VALUES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "logprobs": target_logprob,
    "entropy": lambda logits, _targets: entropy(logits),
}


def score(
    policy: TokenPolicy | Reference,
    rows: Sequence[Row],
    wanted: Sequence[str],
    tokens: int,
    layout: Layout | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Column]:
    """Values of `wanted` at the targets of every row, in eval mode.

    Args:
        wanted: "logprobs", "entropy", or the policy's companions by name ("values").
        tokens: positions per forward.
        layout: None: padded, or one length per forward where the model reads padded rows otherwise, which is tried.
        report: called with (rows done, all rows) after every forward.

    Raises:
        RecipeError: one of `wanted` is unknown.
    """
    # A Reference reads in eval mode without gradient, whatever mode a training has left the module in.
    reader = policy if isinstance(policy, Reference) else Reference(policy)
    head, companions = reader.policy.head, reader.policy.companions
    known = [*VALUES, *companions]
    if unknown := sorted(set(wanted) - set(known)):
        raise RecipeError(f"A score pass cannot give `{unknown[0]}`.", f"Known: {', '.join(known)}.")
    device = next(reader.policy.module.parameters()).device
    columns: dict[str, Column] = {name: {} for name in wanted}
    # Answers of several sources may have other streams beside their weights, such as labels, and share a batch here.
    rows = [replace(row, streams={"weights": row.streams["weights"]}) for row in rows]
    done, layout = 0, layout or ragged_layout(reader.policy, rows)
    for micro in micro_batches(rows, tokens, layout):
        batch = collate(micro, layout).to(device)
        at = batch.targets()
        targets, owners, positions = batch.ids[at], batch.example_of[at], batch.position_of[at]
        hidden = reader.hidden(batch)
        for piece in head.chunks(hidden):
            logits = reader.logits(hidden[piece])
            for name in wanted:
                if name in VALUES:
                    values = VALUES[name](logits, targets[piece])
                else:
                    with reading(companions[name].module) as companion:
                        values = companion(hidden[piece])
                indices = owners[piece].tolist(), positions[piece].tolist()
                _fill(columns[name], micro, *indices, values.cpu().numpy())
        # Rows without targets have a column too: all zeros.
        for column in columns.values():
            for row in micro:
                column.setdefault(row.id, numpy.zeros(len(row), dtype=numpy.float32))
        report(done := done + len(micro), len(rows))
    return columns


def _fill(column: Column, micro: Sequence[Row], owners: list[int], positions: list[int], values: numpy.ndarray) -> None:
    """Write values [n] of a micro-batch into its rows' entries of the column."""
    for owner, position, score in zip(owners, positions, values, strict=True):
        row = micro[owner]
        column.setdefault(row.id, numpy.zeros(len(row), dtype=values.dtype))[position] = score


def with_column(rows: Iterable[Row], name: str, column: Column) -> list[Row]:
    """The rows with a column as a token stream."""
    return [replace(row, streams={**row.streams, name: Stream(column[row.id], "token")}) for row in rows]


def cached_column(file: Path, compute: Callable[[], Column]) -> Column:
    """A column from its file; if there is none, it is computed, and written at once under its name."""
    if file.is_file():
        with numpy.load(file) as stored:
            pieces = numpy.split(stored["values"], stored["ends"][:-1])
            return dict(zip(stored["records"].tolist(), pieces, strict=True))
    column = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    # By process: two runs that compute the same column do not write into each other's file.
    half = file.with_suffix(f".{os.getpid()}.npz")
    values = list(column.values())
    numpy.savez(
        half,
        records=numpy.array(list(column)),
        values=numpy.concatenate(values),
        ends=numpy.cumsum([len(row_values) for row_values in values]),
    )
    half.rename(file)
    return column


def column_key(weights_id: str, dtype: str, rows: Sequence[Row]) -> str:
    """Hash of all that a column depends on: weights, type, and the ids and targets of every row."""
    digest = hashlib.sha256(f"{weights_id}/{dtype}".encode())
    # The stream `weights` decides which positions are targets.
    for row in rows:
        digest.update(row.id.encode() + row.ids.tobytes() + row.streams["weights"].values.tobytes())
    return digest.hexdigest()[:32]
