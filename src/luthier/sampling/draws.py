"""From logits to tokens: temperature, top-p, min-p, and numbers that depend on a seed and a step alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor

from luthier.types import Sampling

# Constants of splitmix64 (Steele, Lea and Flood, OOPSLA 2014, with Stafford's variant 13 of the mixing function).
GOLDEN = numpy.uint64(0x9E3779B97F4A7C15)
FACTORS = (numpy.uint64(0xBF58476D1CE4E5B9), numpy.uint64(0x94D049BB133111EB))


def draw(logits: Tensor, sampling: Sampling, numbers: numpy.ndarray) -> tuple[Tensor, Tensor]:
    """One token per row, by inverting its distribution at one uniform number; temperature 0 takes the largest logit.

    Args:
        logits: of the next token [R,V].
        sampling: temperature, `top_p` (the fewest likeliest tokens that hold this mass; Holtzman et al.,
            1904.09751) and `min_p` (tokens whose probability is at least this share of the largest; 2407.01082).
        numbers: in [0,1), [R].

    Returns:
        Token ids [R], and their log-probabilities [R] under softmax(logits / temperature) over all tokens, which is
        what training computes; at temperature 0 under softmax(logits).
    """
    scaled = logits.float() if sampling.temperature == 0 else logits.float() / sampling.temperature
    normaliser = scaled.logsumexp(-1, keepdim=True)
    if sampling.temperature == 0:
        ids = scaled.argmax(-1)
    else:
        ids = _inverted(_allowed((scaled - normaliser).exp_(), sampling), numbers)
    return ids, (scaled.gather(-1, ids[:, None]) - normaliser)[:, 0]


def _inverted(mass: Tensor, numbers: numpy.ndarray) -> Tensor:
    """The token [R] at which the running sum of `mass` [R,V] exceeds each number's share of the total."""
    # In float32 a token of probability below 6e-8 would not change a sum near 1. MPS has no float64.
    wide = torch.float32 if mass.device.type == "mps" else torch.float64
    running = mass.cumsum(-1, dtype=wide)
    threshold = torch.as_tensor(numbers, dtype=wide, device=mass.device)[:, None] * running[:, -1:]
    # Rounding may put the threshold at the total, behind the last token.
    return torch.searchsorted(running, threshold, right=True)[:, 0].clamp_(max=mass.shape[-1] - 1)


def _allowed(mass: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities [R,V] with 0 where `top_p` or `min_p` exclude a token; the likeliest token always stays."""
    allowed = mass
    if sampling.top_p < 1:
        ordered, tokens = mass.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        first = torch.zeros(1, dtype=torch.long, device=mass.device)
        excluded = (before >= sampling.top_p).index_fill_(-1, first, False)
        allowed = allowed.masked_fill(torch.zeros_like(excluded).scatter_(-1, tokens, excluded), 0.0)
    if sampling.min_p > 0:
        allowed = allowed.masked_fill(mass < sampling.min_p * mass.amax(-1, keepdim=True), 0.0)
    return allowed


def uniforms(seeds: Sequence[int], steps: Sequence[int]) -> numpy.ndarray:
    """Numbers in [0,1) [R], each a function of its (seed, step) alone: two rounds of splitmix64."""
    bits = numpy.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], dtype=numpy.uint64)
    after = numpy.array(steps, dtype=numpy.uint64) + numpy.uint64(2)
    with numpy.errstate(over="ignore"):  # splitmix64 computes modulo 2^64
        for addend in (numpy.uint64(1), after):
            bits = bits + GOLDEN * addend
            bits = (bits ^ (bits >> numpy.uint64(30))) * FACTORS[0]
            bits = (bits ^ (bits >> numpy.uint64(27))) * FACTORS[1]
            bits = bits ^ (bits >> numpy.uint64(31))
    return (bits >> numpy.uint64(11)) / float(1 << 53)  # the 53 bits that a float64 holds
