"""A soft limit on the length of answers."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from luthier.rewards.base import Answer, Reward


class Overlong(Reward):
    """DAPO's soft overlong penalty: 0 up to `limit` - `buffer` tokens, then linear down to -1 at `limit`.

    Source: arXiv 2503.14476, equation 13. The paper's factor of the penalty is the `weight` of this reward.
    """

    PAPER: ClassVar[str] = "arXiv 2503.14476"
    SETTINGS: ClassVar = (
        {"limit": 100, "buffer": 50},
        {"limit": 100, "buffer": 20},
        {"limit": 90, "buffer": 50},
    )
    EXAMPLES: ClassVar = (
        ({"limit": 100, "buffer": 50}, {"text": "", "tokens": 50}, 0.0),
        ({"limit": 100, "buffer": 50}, {"text": "", "tokens": 75}, -0.5),
        ({"limit": 100, "buffer": 50}, {"text": "", "tokens": 200}, -1.0),
    )

    limit: int = Field(
        gt=0,
        description="Tokens at which the penalty reaches -1; longer answers get no less. Set it to the longest answer "
        "that is sampled.",
    )
    buffer: int = Field(
        gt=0,
        description="Tokens before `limit` over which the penalty falls from 0 to -1 in a straight line. Larger begins"
        " earlier and falls more gently.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.buffer > self.limit:
            raise ValueError(f"the buffer {self.buffer} is longer than the limit {self.limit}")
        return self

    def score(self, answer: Answer) -> float:
        return -min(1.0, max(0.0, (answer.tokens - (self.limit - self.buffer)) / self.buffer))
