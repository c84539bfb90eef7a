"""OTR: every position is a one-step rollout of tokens drawn from the model's own distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.objectives.base import TokenObjective
from luthier.objectives.views import TokenView
from luthier.parts import lazy

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.objectives import _divergence as divergence
else:
    torch = lazy("torch")
    divergence = lazy("luthier.objectives._divergence")


class OTR(TokenObjective):
    """One-token rollout: candidates a_1..a_K are drawn at the gold prefix, the right one is rewarded.

    With y the gold token and z the logits of a target position:

    loss_t = -(1/K) Σ_j R(a_j) log p(a_j), R(y) = 1 and R(a) = `mismatch_reward` for a ≠ y,
    a_j ~ p' = softmax(z / sampling_temperature), drawn with replacement and keyed by (seed, update,
    record, position). Samples, rewards and p' are constants; log p is at temperature 1.
    `estimator: exact` (ours, not the paper's) takes the expectation over the draws:
    loss_t = -Σ_a p'(a) R(a) log p(a). The loss is a mean over each record's targets, then over records
    (`normalization: token`: over all targets). At sampling_temperature 1 the expected gradient is
    (1 - mismatch_reward) times dft's. Meter: `hit_rate`, the share of draws that are the gold token.

    Source: arXiv 2509.26313. Its public sources state neither temperature nor mismatch reward.
    """

    PAPER: ClassVar[str] = "arXiv 2509.26313"
    UNIT: ClassVar[str] = "records"
    DETACHED: ClassVar = ("samples",)
    SETTINGS: ClassVar = (
        {},
        {"num_samples": 8},
        {"sampling_temperature": 1.0},
        {"mismatch_reward": 0.0},
        {"estimator": "exact"},
        {"normalization": "token"},
    )

    num_samples: int = Field(
        256,
        ge=1,
        description="Tokens K drawn per position, with replacement. The noise of the gradient falls as 1/√K; the paper"
        " has 256. `estimator: exact` draws none.",
    )
    sampling_temperature: float = Field(
        1.3,
        gt=0.0,
        description="Temperature κ of the draws; the likelihood stays at 1. Above 1 explores more; at 1 the expected "
        "gradient is a multiple of dft's. The paper's number is not public.",
    )
    mismatch_reward: float = Field(
        -0.1,
        lt=1.0,
        description="Reward β of a drawn token that is not the gold one (which gets 1). Below 0 pushes wrong tokens "
        "down; stay within [-0.2, 0]. The paper's number is not public.",
    )
    estimator: Literal["sampled", "exact"] = Field(
        "sampled",
        description="`sampled` draws K tokens (the paper's); `exact` sums over the vocabulary, which is its "
        "expectation: no noise at the same cost.",
    )
    normalization: Literal["sequence", "token"] = Field(
        "sequence",
        description="`sequence` takes the mean over each record's targets, then over records (the paper's); `token` "
        "divides by all targets of the update, as sft does.",
    )

    @property
    def unit(self) -> str:
        return "records" if self.normalization == "sequence" else "targets"

    def token_loss(self, view: TokenView) -> Tensor:
        shares = torch.softmax(view.logits.detach() / self.sampling_temperature, dim=-1)
        if self.estimator == "sampled":  # the frequencies of K draws take the place of the probabilities
            drawn = _draw(shares, view.uniform(self.num_samples))
            shares = torch.zeros_like(shares).scatter_add_(-1, drawn, torch.full_like(drawn, 1, dtype=shares.dtype))
            shares /= self.num_samples
        gold = view.targets[:, None]
        hits = shares.gather(-1, gold)
        view.meter("hit_rate", hits)
        rewarded = (shares * self.mismatch_reward).scatter_(-1, gold, hits)
        loss = -divergence.weighted_logprob(view.logits, rewarded)
        return loss / view.record_targets if self.normalization == "sequence" else loss


def _draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Tokens [n,K] by inverse distribution function: probabilities [n,V], uniform numbers [n,K]."""
    cumulative = probabilities.cumsum(-1)
    total = cumulative[:, -1:]
    # Rounding may lift uniform · total to the total itself, for which searchsorted returns V: no token.
    below = torch.nextafter(total, torch.zeros_like(total))
    levels = torch.minimum((uniform * total).to(cumulative.dtype), below)
    return torch.searchsorted(cumulative, levels, right=True)
