"""Functions that policy-gradient losses share: ratios, clipping, sampled divergences, the value loss. All tensors [n].

Advantages, old and reference log-probabilities and returns are constants; gradients flow to `logprob` and
`values` alone. Every function that is not a ratio or a divergence returns a loss to minimise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

LOG_RATIO_BOUND = 20.0
"""Bound of log-ratios: exp(20) = 5e8 is beyond every clipping range, and exp(89) would overflow float32."""


def ratio(logprob: Tensor, old: Tensor | None, record_mean: Tensor | None = None) -> Tensor:
    """π / π_old of each token; its gradient is ratio × ∇ logprob.

    Args:
        old: log-probabilities under the policy that sampled; None where that is this policy: the ratio is
            then 1, with the gradient of logprob.
        record_mean: mean of logprob - old over each token's whole record, no gradient; the ratio is then the
            sequence's, exp(record_mean) (GSPO, arXiv 2507.18071, equation 14).
    """
    difference = logprob - (logprob.detach() if old is None else old)
    if record_mean is not None:
        # The value is the sequence's, the gradient the token's own: x - sg[x] is 0 with gradient 1.
        difference = record_mean + logprob - logprob.detach()
    return difference.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def clipped(rho: Tensor, advantages: Tensor, low: float, high: float, dual: float | None = None) -> Tensor:
    """-min(ρA, clip(ρ, 1-low, 1+high) A) (arXiv 1707.06347, equation 7).

    Args:
        dual: c > 1; where A < 0 the loss is at most -cA, so that one token whose ratio exploded cannot rule
            the update (arXiv 1912.09729, equation 5).
    """
    loss = -torch.minimum(rho * advantages, rho.clamp(1 - low, 1 + high) * advantages)
    if dual is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual * advantages), loss)


def is_clipped(rho: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """1 where `clipped` has lost its gradient, [n]."""
    return (((rho > 1 + high) & (advantages > 0)) | ((rho < 1 - low) & (advantages < 0))).to(rho.dtype)


def cispo(rho: Tensor, logprob: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """-sg[clip(ρ, 1-low, 1+high)] A log π: weights are clipped, gradients never (arXiv 2506.13585)."""
    return -rho.detach().clamp(1 - low, 1 + high) * advantages * logprob


def k1(logprob: Tensor, reference: Tensor) -> Tensor:
    """log π - log π_ref: its mean over samples of π is KL(π || π_ref), its gradient's mean is 0."""
    return logprob - reference


def k2(logprob: Tensor, reference: Tensor) -> Tensor:
    """(log π - log π_ref)² / 2: a biased mean, and the gradient of KL(π || π_ref)."""
    return (logprob - reference).square() / 2


def k3(logprob: Tensor, reference: Tensor, most: float | None = None) -> Tensor:
    """r - 1 - log r with r = π_ref / π: never negative; its mean is KL(π || π_ref), its gradient's KL(π_ref || π)'s.

    Args:
        most: bound of k3, beyond which its gradient is 0; log r is then clamped to ±LOG_RATIO_BOUND first, so that
            the exponential does not overflow. None: no bound.
    """
    difference = reference - logprob
    if most is None:
        return difference.exp() - 1 - difference
    difference = difference.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return (difference.exp() - 1 - difference).clamp(max=most)


ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
"""Of KL(π || π_ref) from samples of π (Schulman 2020, "Approximating KL divergence")."""


def value_loss(values: Tensor, old: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """max((v - R)², (clip(v, old ± clip) - R)²) / 2, with `clip` None (v - R)² / 2."""
    error = (values - returns).square()
    if clip is not None:
        clipped_values = torch.minimum(torch.maximum(values, old - clip), old + clip)
        error = torch.maximum(error, (clipped_values - returns).square())
    return error / 2
