"""A group of answers to each prompt."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from luthier.rollouts.base import Context, Group, Prompt, Rounds, Strategy


class Plain(Strategy):
    """`group` answers to each prompt, all sampled from the prompt alone: the rollout of GRPO, RLOO and PPO."""

    PAPER: ClassVar[str] = "arXiv 2402.03300"
    SETTINGS: ClassVar = ({}, {"group": 4})

    group: int = Field(
        8,
        ge=1,
        description="Answers to each prompt. More make the advantages less noisy; the cost grows in proportion. TRL "
        "has 8.",
    )

    def rounds(self, prompt: Prompt, ctx: Context) -> Rounds:
        scored = yield [prompt.request() for _ in range(self.group)]
        return [Group(prompt, tuple(scored))]
