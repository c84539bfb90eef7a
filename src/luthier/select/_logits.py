"""What uds sees of a micro-batch: for each record the nuclear norm of its logits and their sketch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luthier.errors import RunError
from luthier.select._sketch import Projection, Ring, nuclear_norm

if TYPE_CHECKING:
    from luthier.types import Batch

PIECE = 8192
"""Rows of the output embedding that are multiplied in float64 at a time."""


@dataclass
class Sketcher:
    """The fixed projections of both sides, and the ring of what was kept."""

    across: Projection  # of the vocabulary
    along: Projection  # of the positions
    ring: Ring
    table: Tensor | None = None  # columns of `across` for the whole vocabulary, made at the first look
    weight: tuple[int, int] = (0, 0)  # which weight `products` are of: address and version
    products: tuple[Tensor, Tensor, Tensor] | None = None

    def state_dict(self) -> dict[str, Tensor]:
        return self.ring.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.ring.load_state_dict(state)

    def columns(self, piece: slice, like: Tensor) -> Tensor:
        """Columns [d1,v] of the vocabulary's projection."""
        if self.table is None or self.table.device != like.device:
            self.table = self.across.columns(torch.arange(self.across.size)).to(like.device, torch.float32)
        return self.table[:, piece].to(like.dtype)

    def of_weight(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """W^T W [D,D], G1 W [d1,D] and 1^T W [D] in float64, once for each state of the weight.

        W [V,D] is the output embedding, with the bias as a last column.
        """
        now = (weight.data_ptr(), weight._version)
        if self.products is None or self.weight != now:
            self.weight, self.products = now, self._multiply(weight, bias)
        return self.products

    def _multiply(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        square, projected, sums = 0.0, 0.0, 0.0
        for start in range(0, len(weight), PIECE):
            piece = slice(start, start + PIECE)
            wide = weight[piece].double()
            if bias is not None:
                wide = torch.cat([wide, bias[piece].double()[:, None]], 1)
            square = square + wide.T @ wide
            projected = projected + self.columns(piece, wide) @ wide
            sums = sums + wide.sum(0)
        return square, projected, sums  # pyright: ignore[reportReturnType]


def at_every_token(batch: Batch) -> Batch:
    """The batch with every token but the first of a record as a target."""
    marked = (batch.example_of >= 0).to(batch.weights.dtype)
    return replace(batch, streams={**batch.streams, "weights": replace(batch.streams["weights"], values=marked)})


def norms_and_sketches(policy: Any, batch: Batch, sketcher: Sketcher, centre: bool) -> tuple[Tensor, Tensor]:
    """Nuclear norm [R] and sketch [R, d1·d2] of the logits at each record's targets.

    Logits that are linear in the hidden states H are never made: L L^T = H (W^T W) H^T and L G1^T = H (G1 W)^T.
    Where a soft cap or an adapter stands in between they pass in pieces of the vocabulary.

    Raises:
        RunError: a record is longer than the sketch.
    """
    rows, columns = batch.targets()
    owner, places = batch.example_of[rows, columns], batch.position_of[rows, columns] - 1
    if len(places) and int(places.max()) >= sketcher.along.size:
        record = batch.examples[int(owner[places.argmax()])]
        raise RunError(
            f"Record {record} has {int(places.max()) + 1} positions, the sketch {sketcher.along.size}.",
            "Raise train.select.length to data.max_tokens.",
        )
    order = torch.argsort(owner, stable=True)
    hidden = policy.hidden(batch)[order]
    sizes = owner.bincount(minlength=len(batch.examples)).tolist()
    linear = policy.head.linear
    if linear is None:
        grams, sums, projected = _accumulate(policy.head.vocabulary(hidden), sizes, sketcher)
    else:
        grams, sums, projected = _through_weight(hidden, linear, sizes, sketcher)
    if centre:
        whole = sketcher.columns(slice(None), projected).sum(1)
        projected = projected - torch.outer((sums / sketcher.across.size).to(projected.dtype), whole)
        grams = [g - torch.outer(s, s) / sketcher.across.size for g, s in zip(grams, sums.split(sizes), strict=True)]
    along = sketcher.along.columns(places[order].cpu()).to(projected.device, projected.dtype)
    pieces = zip(along.split(sizes, dim=1), projected.split(sizes), strict=True)
    sketches = torch.stack([(side @ part).flatten() for side, part in pieces])
    return torch.stack([nuclear_norm(one) if len(one) else one.sum() for one in grams]), sketches.float()


def _through_weight(
    hidden: Tensor, linear: tuple[Tensor, Tensor | None, float], sizes: list[int], sketcher: Sketcher
) -> tuple[list[Tensor], Tensor, Tensor]:
    """What `_accumulate` gives, from products with the output embedding that all records share."""
    weight, bias, factor = linear
    square, projection, column_sums = sketcher.of_weight(weight, bias)
    wide = hidden.double()
    if bias is not None:
        wide = torch.cat([wide, wide.new_ones(len(wide), 1)], 1)
    wide = wide * factor
    return [part @ square @ part.T for part in wide.split(sizes)], wide @ column_sums, wide @ projection.T


def _accumulate(
    pieces: Iterator[tuple[slice, Tensor]], sizes: list[int], sketcher: Sketcher
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Over pieces of the vocabulary: L L^T of each record (float64), sums of each row, and L G1^T."""
    grams: list[Any] = [0.0] * len(sizes)
    sums: Any = 0.0
    projected: Any = 0.0
    for piece, logits in pieces:
        wide = logits.double()
        for index, part in enumerate(wide.split(sizes)):
            grams[index] = grams[index] + part @ part.T
        sums = sums + wide.sum(1)
        projected = projected + logits @ sketcher.columns(piece, logits).T
    return grams, sums, projected
