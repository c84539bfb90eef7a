"""Nuclear norms and sketches of logits, from products that fit in memory, and a ring buffer of sketches."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Scale = Literal["isometric", "fft_unnormalised"]
SIGNS_SEED = 2510_16882  # a constant: sketches in a checkpoint compare with those of any later run


def nuclear_norm(gram_matrix: Tensor) -> Tensor:
    """Σ_j σ_j(L) from L L^T [N,N] in float64: σ_j = sqrt(max(λ_j, 0)).

    In float32 the rounding errors of zero eigenvalues add up to 1e-3 of the norm of a low-rank matrix.
    """
    return torch.linalg.eigvalsh(gram_matrix).clamp(min=0).sqrt().sum()


class Projection:
    """One side of a sketch: G [kept,size], rows of a randomised trigonometric transform of `size` coordinates.

    Random signs, then a transform of which `kept` coordinates are sampled, scaled by sqrt(size / kept).
    *isometric*: an orthonormal DCT-II, coordinates without repetition: E‖Gx‖² = ‖x‖² for every x.
    *fft_unnormalised*: the real part of an unnormalised DFT, coordinates with repetition, as in the published
    code: E‖Gx‖² is (size / 2)(1 + 2 / size) times as large for entries of equal variance.
    """

    def __init__(self, size: int, kept: int, scale: Scale, seed: int = SIGNS_SEED):
        generator = torch.Generator().manual_seed(seed)
        self.size, self.kept, self.scale = size, kept if scale == "fft_unnormalised" else min(kept, size), scale
        self.signs = torch.randint(0, 2, (size,), generator=generator).double() * 2 - 1
        if scale == "isometric":
            self.coordinates = torch.randperm(size, generator=generator)[: self.kept]
        else:
            self.coordinates = torch.randint(0, size, (kept,), generator=generator)

    def columns(self, indices: Tensor) -> Tensor:
        """The columns [kept,n] of G with these indices [n], float64 on the CPU."""
        k, factor = self.coordinates[:, None], math.sqrt(self.size / self.kept)
        if self.scale == "isometric":
            turns = (k * (2 * indices + 1)) % (4 * self.size)  # reduced as integers, so that large k lose no digit
            norm = torch.where(k == 0, math.sqrt(1 / self.size), math.sqrt(2 / self.size)).double()
            values = norm * torch.cos(math.pi / (2 * self.size) * turns.double())
        else:
            values = torch.cos(2 * math.pi / self.size * ((k * indices) % self.size).double())
        return factor * values * self.signs[indices]


class Ring:
    """A ring buffer of the last `capacity` sketches [width] that were pushed; the oldest are overwritten."""

    def __init__(self, capacity: int, width: int):
        self.sketches = torch.zeros(capacity, width)
        self.pushed = torch.zeros((), dtype=torch.int64)

    def push(self, sketches: Tensor) -> None:
        for sketch in sketches:
            self.sketches[int(self.pushed) % len(self.sketches)] = sketch
            self.pushed += 1

    def held(self) -> Tensor:
        """The sketches in the ring, [n,width], in no particular order."""
        return self.sketches[: min(int(self.pushed), len(self.sketches))]

    def mean_distance(self, sketches: Tensor) -> Tensor:
        """Mean Euclidean distance [n] of sketches [n,width] to those in the ring; 0 while it is empty."""
        held = self.held()
        if not len(held):
            return torch.zeros(len(sketches))
        # Not by matrix products, which lose the digits of small distances: near copies are what this must detect.
        return torch.cdist(sketches, held, compute_mode="donot_use_mm_for_euclid_dist").mean(1)

    def state_dict(self) -> dict[str, Tensor]:
        return {"sketches": self.sketches, "pushed": self.pushed}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sketches, self.pushed = state["sketches"].clone(), state["pushed"].clone()
