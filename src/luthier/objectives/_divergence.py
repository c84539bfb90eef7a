"""Divergences and expectations of categorical distributions, from logits.

Each is an autograd function with its gradient written out: the forward saves one [n,V] tensor for the backward, where
autograd would save every intermediate. Operations in place (`sub_`, `mul_`) reuse that memory for the same reason.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOG_BOUND = 1e30
"""Bound of log-probabilities and of their differences. A token with a logit of -inf then contributes
0 · LOG_BOUND = 0 where its probability is 0; 0 · inf would be NaN."""


class _ForwardKL(torch.autograd.Function):
    """KL(q || p) for constant q. Its gradient with respect to p's logits is p - q."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, reference: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, dim=-1)
        log_q = torch.log_softmax(reference, dim=-1)
        q = log_q.exp()
        distance = _bounded(log_q.sub_(log_p)).mul_(q).sum(-1)
        ctx.save_for_backward(log_p.exp_().sub_(q))
        return distance

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad_logits,) = ctx.saved_tensors
        return grad_logits * grad_outputs[0][:, None], None


class _ReverseKL(torch.autograd.Function):
    """KL(p || q) for constant q. Its gradient with respect to p's logits is p (log p - log q - KL)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, reference: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, dim=-1)
        p = log_p.exp()
        difference = _bounded(log_p.sub_(torch.log_softmax(reference, dim=-1)))
        distance = torch.linalg.vecdot(p, difference)
        ctx.save_for_backward(difference.sub_(distance[:, None]).mul_(p))
        return distance

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad_logits,) = ctx.saved_tensors
        return grad_logits * grad_outputs[0][:, None], None


class _Entropy(torch.autograd.Function):
    """-Σ_v p_v log p_v. Its gradient with respect to the logits is -p (log p + H)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, dim=-1)
        log_p.clamp_(min=torch.finfo(log_p.dtype).min)  # a logit of -inf contributes 0, not 0 · inf = NaN
        p = log_p.exp()
        entropies = -torch.linalg.vecdot(p, log_p)
        ctx.save_for_backward(log_p.add_(entropies[:, None]).mul_(p))
        return entropies

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (negative_grad,) = ctx.saved_tensors
        return negative_grad * -grad_outputs[0][:, None]


class _WeightedLogProb(torch.autograd.Function):
    """Σ_v c_v log p_v for constant c. Its gradient with respect to the logits is c - (Σ_v c_v) p."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, coefficients: Tensor) -> Tensor:
        # A coefficient of 0 on a logit of -inf must contribute 0: 0 · -inf would be NaN.
        log_p = torch.log_softmax(logits, dim=-1).clamp_(min=-LOG_BOUND)
        expectation = torch.linalg.vecdot(coefficients, log_p)
        total = coefficients.sum(-1, keepdim=True)
        ctx.save_for_backward(torch.addcmul(coefficients, log_p.exp_(), total, value=-1))
        return expectation

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (grad_logits,) = ctx.saved_tensors
        return grad_logits * grad_outputs[0][:, None], None


def _bounded(difference: Tensor) -> Tensor:
    """log q - log p, in place: 0 where both are -inf, ±LOG_BOUND where one of them is."""
    return difference.nan_to_num_(nan=0.0, posinf=LOG_BOUND, neginf=-LOG_BOUND)


def entropy(logits: Tensor) -> Tensor:
    """H = -Σ_v p_v log p_v in nats: logits [n,V] → [n]."""
    return _Entropy.apply(logits)


def weighted_logprob(logits: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_v c_v log p_v: logits and coefficients [n,V] → [n]; gradient to the logits alone."""
    return _WeightedLogProb.apply(logits, coefficients)


def kl_from_reference(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(reference || policy) = Σ_v q (log q - log p): logits [n,V] twice → [n]; gradient to the first.

    A token with p = 0 and q > 0 contributes q · LOG_BOUND: a finite loss, too large to be overlooked.
    """
    return _ForwardKL.apply(logits, reference)


def kl_to_reference(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) = Σ_v p (log p - log q): logits [n,V] twice → [n]; gradient to the first."""
    return _ReverseKL.apply(logits, reference)
