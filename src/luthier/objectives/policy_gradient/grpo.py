"""GRPO: a clipped policy gradient on sampled answers, with advantages relative to a group of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.objectives.base import TokenObjective
from luthier.objectives.views import TokenView
from luthier.parts import lazy

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.objectives.policy_gradient import _surrogate as surrogates
    from luthier.types import Row
else:
    surrogates = lazy("luthier.objectives.policy_gradient._surrogate")


class GRPO(TokenObjective):
    """Group relative policy optimisation and its relatives, over the stream `advantages`.

    Per token (paper, equation 3):
    loss_t = -min(ρ_t A_t, clip(ρ_t, 1 - clip_low, 1 + clip_high) A_t) + kl_coefficient · k_t, with ρ = π / π_old
    of the token, or with `ratio: sequence` (GSPO) exp of the mean log-ratio of the whole record. Without the
    stream `old_logprobs` (one update per rollout) ρ is 1 and its gradient A ∇ log π.

    norm: `token` divides by the targets of the update (dapo, trl's default), `sequence` takes the mean of
    each record and then of the records (the grpo paper), `constant` divides by records × max_length (dr_grpo).
    Micro-batch means (bnpo) are not offered: they depend on how an update is split. `k3_clamp` bounds k3 of a token.
    Meters: `ratio`, `clip_fraction`, and `kl` with a `kl_coefficient`.

    Sources: arXiv 2402.03300 (grpo), 2503.14476 (dapo), 2503.20783 (dr_grpo), 2507.18071 (gspo), 2506.13585
    (cispo), 1912.09729 (dual clip). In cispo the cap is 1 + clip_high as in the paper; trl's option is the cap.
    """

    PAPER: ClassVar[str] = "arXiv 2402.03300"
    READS: ClassVar = ("advantages", "old_logprobs")
    SETTINGS: ClassVar = (
        {},
        {"clip_low": 0.05},
        {"clip_high": 0.05},
        {"dual_clip": 1.05},
        {"surrogate": "cispo"},
        {"ratio": "sequence"},
        {"norm": "sequence"},
        {"norm": "constant"},
        {"norm": "constant", "max_length": 64},
        {"kl_coefficient": 0.1},
        {"kl_coefficient": 0.1, "kl_estimator": "k1"},
        {"kl_coefficient": 0.1, "kl_estimator": "k2"},
        {"kl_coefficient": 0.1, "k3_clamp": 0.01},
    )

    clip_low: float = Field(
        0.2,
        gt=0.0,
        description="How far below 1 the ratio may fall before its gradient ends. Larger allows larger steps. GRPO and"
        " DAPO have 0.2, GSPO 3e-4.",
    )
    clip_high: float = Field(
        0.2,
        gt=0.0,
        description="How far above 1 the ratio may rise before its gradient ends. Larger lets unlikely tokens grow "
        "more: DAPO has 0.28, GSPO 4e-4. In CISPO the weight's cap is 1 + this.",
    )
    dual_clip: float | None = Field(
        None,
        gt=1.0,
        description="Bound c above 1: where the advantage A is negative, a token's loss is at most -cA, so that one "
        "exploded ratio cannot rule the update. 3 is usual; null sets no bound.",
    )
    surrogate: Literal["clip", "cispo"] = Field(
        "clip",
        description="`clip` ends the gradient of tokens whose ratio left the range (PPO); `cispo` caps the weight "
        "instead and keeps every token's gradient.",
    )
    ratio: Literal["token", "sequence"] = Field(
        "token",
        description="`token` takes the ratio of each token; `sequence` (GSPO) the exponential of the answer's mean "
        "log-ratio, and goes with `norm: sequence`.",
    )
    norm: Literal["token", "sequence", "constant"] = Field(
        "token",
        description="Divisor of the loss: `token`, all targets of the update (DAPO); `sequence`, each answer's "
        "targets, then the answers (GRPO's paper); `constant`, answers × `max_length` (Dr. GRPO).",
    )
    max_length: int = Field(
        256,
        gt=0,
        description="Tokens that `norm: constant` divides each answer by: the longest that is sampled "
        "(`generate.max_new_tokens`). 1 gives the sum per answer.",
    )
    kl_coefficient: float = Field(
        0.0,
        ge=0.0,
        description="Weight of the divergence from the initial model in the loss. Larger stays nearer to it; 0 reads "
        "no reference. The GRPO paper has 0.04.",
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        "k3",
        description="Estimate of KL(policy ‖ initial) from one token: `k3` is never negative; `k2` has the gradient of"
        " that divergence; `k1` has none on average and is for controls.",
    )
    k3_clamp: float | None = Field(
        None,
        gt=0.0,
        description="Bound of k3 of one token, in nats; beyond it the token's divergence has no gradient. Raising it"
        " lets far tokens pull harder; null is no bound, and overflows where a token's log-ratio exceeds 88. verl"
        " has 10, the paper and trl none.",
    )

    @model_validator(mode="after")
    def _clamp_is_read(self) -> GRPO:
        if self.k3_clamp is not None and not (self.kl_coefficient and self.kl_estimator == "k3"):
            raise ValueError("`k3_clamp` bounds k3 in the loss: set `kl_coefficient` above 0 and `kl_estimator: k3`")
        return self

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.READS, "logprobs:initial") if self.kl_coefficient else self.READS

    @property
    def unit(self) -> str:
        return "targets" if self.norm == "token" else "records"

    def has_gradient(self, row: Row) -> bool:
        # Advantages of 0 leave only the divergence; without one the row is counted and never forwarded.
        return bool(self.kl_coefficient) or not row.silent("advantages")

    def token_loss(self, view: TokenView) -> Tensor:
        loss = self._surrogate(view)
        if self.kl_coefficient:
            reference = view.stream("logprobs:initial")
            loss = loss + self.kl_coefficient * self._divergence(view.logprob, reference)
            # Reported as k3 whatever the loss uses, so that runs with different estimators compare.
            view.meter("kl", surrogates.k3(view.logprob, reference, self.k3_clamp))
        # The engine divides by the number of answers; the mean within an answer is taken here.
        if self.norm == "sequence":
            return loss / view.record_targets
        return loss / self.max_length if self.norm == "constant" else loss

    def _divergence(self, logprob: Tensor, reference: Tensor) -> Tensor:
        """The chosen estimator of KL(policy ‖ initial), [n]."""
        if self.kl_estimator == "k3":
            return surrogates.k3(logprob, reference, self.k3_clamp)
        return surrogates.ESTIMATORS[self.kl_estimator](logprob, reference)

    def _surrogate(self, view: TokenView) -> Tensor:
        advantages = view.stream("advantages")
        rho = self._ratio(view)
        view.meter("ratio", rho)
        view.meter("clip_fraction", surrogates.is_clipped(rho, advantages, self.clip_low, self.clip_high))
        if self.surrogate == "cispo":
            return surrogates.cispo(rho, view.logprob, advantages, self.clip_low, self.clip_high)
        return surrogates.clipped(rho, advantages, self.clip_low, self.clip_high, self.dual_clip)

    def _ratio(self, view: TokenView) -> Tensor:
        old = view.streams.get("old_logprobs")
        if self.ratio == "token" or old is None:
            return surrogates.ratio(view.logprob, old)
        mean = view.record_mean(lambda batch: batch.logprob - batch.streams["old_logprobs"])
        return surrogates.ratio(view.logprob, old, mean)
