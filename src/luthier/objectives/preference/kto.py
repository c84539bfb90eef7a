"""KTO: raise good answers and lower bad ones, relative to the policy's mean distance from the initial model."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.objectives.preference.base import LabelObjective, good
from luthier.objectives.views import SequenceView
from luthier.parts import lazy
from luthier.update import Update

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.models.policy import TokenPolicy
    from luthier.objectives.preference import _baseline as baselines
else:
    torch = lazy("torch")
    baselines = lazy("luthier.objectives.preference._baseline")


class KTO(LabelObjective):
    """Kahneman-Tversky optimisation: a value that saturates, of each answer's log-ratio against a baseline.

    With r = Σ_t (log p - log q) over the answer's tokens, p the policy and q the model before training,
    good answers: desirable_weight · (1 - σ(β (r - z))), bad ones: undesirable_weight · (1 - σ(β (z - r))).
    z = max(0, mean r of the update's answers, each after the prompt of another record), a constant: an estimate
    of KL(p || q), one number for the whole update, computed in eval mode before its first backward. An update
    whose answers all have the same prompt has z = 0. `baseline: zero` sets z = 0 (APO-zero for unpaired answers).
    Meters: `kl` is z, `good_reward` and `bad_reward` the means of β r.

    Raises:
        RecipeError: all answers of the first update have the same prompt.

    Source: arXiv 2402.01306, equations 7 and 8; `zero`: arXiv 2408.06266. TRL rotates the prompts within a device's
    batch; Luthier permutes those of the whole update, so splitting it does not change z.
    """

    PAPER: ClassVar[str] = "arXiv 2402.01306"
    READS: ClassVar = ("logprobs:initial",)
    SETTINGS: ClassVar = (  # no DETACHED: the conformance workspace has z = 0, where the gradient is the derivative
        {},
        {"beta": 0.5},
        {"desirable_weight": 2.0},
        {"undesirable_weight": 2.0},
        {"baseline": "zero"},
    )

    beta: float = Field(
        0.1,
        gt=0.0,
        description="Factor β of the log-ratios to the initial model. Smaller lets the policy move further from it "
        "before an answer stops counting; TRL has 0.1.",
    )
    desirable_weight: float = Field(
        1.0,
        ge=0.0,
        description="Weight of good answers. The paper advises that this × (good answers) be 1 to 4/3 times "
        "`undesirable_weight` × (bad answers).",
    )
    undesirable_weight: float = Field(
        1.0,
        ge=0.0,
        description="Weight of bad answers. Raise it where they are rarer than good ones; 0 learns from good answers "
        "alone.",
    )
    baseline: Literal["kl", "zero"] = Field(
        "kl",
        description="Zero point of the reward: `kl`, the update's mean log-ratio on mismatched prompts (the paper's), "
        "or `zero` (APO-zero, arXiv 2408.06266; TRL's `apo_zero_unpaired`), which saves two forwards.",
    )

    @property
    def reads(self) -> tuple[str, ...]:
        # Answers after other prompts are in no precomputed column, so the initial model itself has to run.
        return (*self.READS, "logits:initial") if self.baseline == "kl" else self.READS

    def prepare(self, policy: TokenPolicy, update: Update) -> None:
        kl = baselines.mismatch(policy, update, self.kind) if self.baseline == "kl" else 0.0
        update.set_prepared(self, max(0.0, kl))

    def sequence_loss(self, view: SequenceView) -> Tensor:
        ratio, baseline, desirable = view.log_ratio(), view.update.prepared_by(self), good(view)
        reward = self.beta * ratio.detach()
        view.update.meter("good_reward", reward[desirable].sum(), "good")
        view.update.meter("bad_reward", reward[~desirable].sum(), "bad")
        view.update.meter("kl", baseline * int((view.count > 0).sum()), "answers")
        gain = torch.where(desirable, ratio - baseline, baseline - ratio)
        weight = torch.where(desirable, self.desirable_weight, self.undesirable_weight)
        return weight * torch.sigmoid(-self.beta * gain)
