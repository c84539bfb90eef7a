"""The features of uds: the nuclear norm of each row's logits, and a sketch of them."""

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
"""Rows of the output embedding that are converted to float64 at a time: 8192 × 4096 × 8 bytes are 256 MiB."""


@dataclass
class Sketcher:
    """The state of uds: the fixed projections of both sides, and the ring of sketches that were kept.

    Only the ring enters checkpoints; projections are drawn from a constant, and products follow from the weight.
    """

    across: Projection  # of the vocabulary, G1 [d1,V]
    along: Projection  # of the positions, G2 [d2,length]
    ring: Ring
    table: Tensor | None = None  # columns of `across` for the whole vocabulary, computed on first use
    weight: tuple[int, int] = (0, 0)  # the weight that `products` were computed from: address and version
    products: tuple[Tensor, Tensor, Tensor] | None = None

    def state_dict(self) -> dict[str, Tensor]:
        return self.ring.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.ring.load_state_dict(state)

    def columns(self, piece: slice, like: Tensor) -> Tensor:
        """Columns [d1,v] of the vocabulary's projection, on the device and in the dtype of `like`."""
        if self.table is None or self.table.device != like.device:
            self.table = self.across.columns(torch.arange(self.across.size)).to(like.device, torch.float32)
        return self.table[:, piece].to(like.dtype)

    def weight_products(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """W^T W [D,D], G1 W [d1,D] and 1^T W [D] in float64, once for each state of the weight.

        W [V,D] is the output embedding, with the bias as a last column.
        """
        # Optimisers change the weight in place: its address stays and its version counts up.
        version = (weight.data_ptr(), weight._version)
        if self.products is None or self.weight != version:
            self.weight, self.products = version, self._multiply(weight, bias)
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
    """The batch with every token of a row as a target, except the first."""
    weights = (batch.example_of >= 0).to(batch.weights.dtype)
    return replace(batch, streams={**batch.streams, "weights": replace(batch.streams["weights"], values=weights)})


def norms_and_sketches(policy: Any, batch: Batch, sketcher: Sketcher, centre: bool) -> tuple[Tensor, Tensor]:
    """Nuclear norm [R] and sketch [R, d1·d2] of the logits at each row's targets (arXiv 2510.16882).

    Logits that are linear in the hidden states H are never computed: L L^T = H (W^T W) H^T and L G1^T = H (G1 W)^T.
    With a soft cap or an adapter on the output head they are computed in pieces of the vocabulary.

    Args:
        centre: subtract each position's mean from its logits.

    Raises:
        RunError: a row is longer than the sketch.
    """
    rows, columns = batch.targets()
    owner, positions = batch.example_of[rows, columns], batch.position_of[rows, columns] - 1
    if len(positions) and int(positions.max()) >= sketcher.along.size:
        example = batch.examples[int(owner[positions.argmax()])]
        raise RunError(
            f"Record {example} has {int(positions.max()) + 1} positions; the sketch covers {sketcher.along.size}.",
            "Raise train.select.length to data.max_tokens.",
        )
    order = torch.argsort(owner, stable=True)  # the positions of a row become one range, whatever the layout
    hidden = policy.hidden(batch)[order]
    sizes = owner.bincount(minlength=len(batch.examples)).tolist()
    linear = policy.head.linear
    if linear is None:
        grams, sums, projected = _accumulate(policy.head.vocabulary(hidden), sizes, sketcher)
    else:
        grams, sums, projected = _through_weight(hidden, linear, sizes, sketcher)
    if centre:
        # Centred after the fact: the mean of the logits is a rank-one term in both products, s = L 1.
        column_sums = sketcher.columns(slice(None), projected).sum(1)
        projected = projected - torch.outer((sums / sketcher.across.size).to(projected.dtype), column_sums)
        grams = [g - torch.outer(s, s) / sketcher.across.size for g, s in zip(grams, sums.split(sizes), strict=True)]
    along = sketcher.along.columns(positions[order].cpu()).to(projected.device, projected.dtype)
    sketches = []
    for side, part in zip(along.split(sizes, dim=1), projected.split(sizes), strict=True):
        sketches.append((side @ part).flatten())
    norms = [nuclear_norm(gram) if len(gram) else gram.sum() for gram in grams]  # a row without targets has norm 0
    return torch.stack(norms), torch.stack(sketches).float()


def _through_weight(
    hidden: Tensor, linear: tuple[Tensor, Tensor | None, float], sizes: list[int], sketcher: Sketcher
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The same as `_accumulate`, from products with the output embedding that all rows share."""
    weight, bias, factor = linear
    square, projection, column_sums = sketcher.weight_products(weight, bias)
    wide = hidden.double()
    if bias is not None:
        wide = torch.cat([wide, wide.new_ones(len(wide), 1)], 1)
    wide = wide * factor
    return [part @ square @ part.T for part in wide.split(sizes)], wide @ column_sums, wide @ projection.T


def _accumulate(
    pieces: Iterator[tuple[slice, Tensor]], sizes: list[int], sketcher: Sketcher
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Over pieces of the vocabulary: L L^T of each row (float64), the sums L 1 [N], and L G1^T [N,d1]."""
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
