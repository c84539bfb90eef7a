"""PPO: a clipped policy gradient whose advantages come from a learnt value function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.objectives.base import TokenObjective
from luthier.objectives.views import TokenView
from luthier.parts import lazy
from luthier.types import Batch, Term
from luthier.update import Update

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.models import policy as policies
    from luthier.objectives.policy_gradient import _surrogate as surrogates
    from luthier.objectives.policy_gradient import _value as value_heads
else:
    policies = lazy("luthier.models.policy")
    surrogates = lazy("luthier.objectives.policy_gradient._surrogate")
    value_heads = lazy("luthier.objectives.policy_gradient._value")


class PPO(TokenObjective):
    """Proximal policy optimisation with a value head, the companion `values`.

    loss_t = -min(ρ_t A_t, clip(ρ_t, 1 - clip_low, 1 + clip_high) A_t)
             + value_coefficient · max((v_t - R_t)², (clip(v_t, V_t ± value_clip) - R_t)²) / 2,
    both averaged over the targets of the update. v_t is the value of the state before token t, V_t its estimate
    when the rollout was scored (stream `values`), R_t = A_t + V_t before whitening (stream `returns`). The
    advantage `gae` computes A and R; a KL penalty belongs to the reward.

    The value head reads the hidden state that predicts token t. Its learning rate is `value_rate` times the model's;
    without `value_reaches_model` its loss trains the head alone. Its gradient is clipped separately.
    Meters: `ratio`, `clip_fraction`, `value_error`, the mean of (v_t - R_t)².

    Sources: arXiv 1707.06347, 1506.02438; value clipping and coefficients as in trl, which trains a second
    model for the values.
    """

    PAPER: ClassVar[str] = "arXiv 1707.06347"
    READS: ClassVar = ("advantages", "old_logprobs", "values", "returns")
    SETTINGS: ClassVar = (
        {},
        {"clip_low": 0.05},
        {"clip_high": 0.05},
        {"value_clip": None},
        {"value_coefficient": 1.0},
        {"value_rate": 1.0},
        {"value_reaches_model": False},
    )

    clip_low: float = Field(
        0.2,
        gt=0.0,
        description="How far below 1 the ratio may fall before its gradient ends. Larger allows larger steps per "
        "rollout; 0.2 is the paper's.",
    )
    clip_high: float = Field(
        0.2,
        gt=0.0,
        description="How far above 1 the ratio may rise before its gradient ends. Larger lets unlikely tokens grow "
        "more; 0.2 is the paper's.",
    )
    value_clip: float | None = Field(
        0.2,
        gt=0.0,
        description="How far a value may move from its estimate at the rollout before its gradient ends, in units of "
        "the reward. Null sets no bound; TRL has 0.2.",
    )
    value_coefficient: float = Field(
        0.1,
        ge=0.0,
        description="Weight of the value loss beside the policy's. Larger fits the values sooner and moves shared "
        "hidden states more; TRL has 0.1.",
    )
    value_rate: float = Field(
        10.0,
        gt=0.0,
        description="Factor of the learning rate for the value head, which starts at 0. Larger lets it follow the "
        "returns sooner; 1 is the model's own rate.",
    )
    value_reaches_model: bool = Field(
        True,
        description="Whether the value loss also trains the model's hidden states. False trains the head alone.",
    )

    def companions(self, policy: Any) -> dict[str, policies.Companion]:
        weight = policy.head.output.weight
        return {"values": policies.Companion(value_heads.ValueHead(weight.shape[1], weight), self.value_rate)}

    def token_loss(self, view: TokenView) -> Tensor:
        advantages = view.stream("advantages")
        rho = surrogates.ratio(view.logprob, view.streams.get("old_logprobs"))
        view.meter("ratio", rho)
        view.meter("clip_fraction", surrogates.is_clipped(rho, advantages, self.clip_low, self.clip_high))
        return surrogates.clipped(rho, advantages, self.clip_low, self.clip_high)

    def hidden_terms(self, policy: Any, batch: Batch, hidden: Tensor, update: Update) -> list[Term]:
        # `hidden` holds the states that predict the targets, so values[i] is the value before target i.
        values = policy.companions["values"].module(hidden if self.value_reaches_model else hidden.detach())
        old, returns = (batch.at_targets(name).to(values.dtype) for name in ("values", "returns"))
        loss = surrogates.value_loss(values, old, returns, self.value_clip)
        update.meter("value_error", (values - returns).detach().square().sum(), "targets")
        return [Term((loss * batch.at_targets("weights")).sum(), self.UNIT, self.value_coefficient)]
