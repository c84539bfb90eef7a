"""Prefix-RFT: in each group, one answer begins with the first tokens of the gold answer."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import numpy
from pydantic import Field, model_validator

from luthier.rollouts.base import Context, Group, Prompt, Rounds, Strategy


class Prefix(Strategy):
    """`group` answers per prompt, of which `hybrids` continue the first tokens of the demonstration (the gold answer).

    The prefix is part of the answer: it is judged, credited and trained with the answer. Of the demonstration's D
    tokens it has floor(l · D), at least `least` and at most D - 1, with l = low + (high - low) · Beta(a, b). `low`
    falls from `high` to `end` along half a cosine, over `horizon` of the budget. Prompts without a demonstration, or
    with one of one token, get ordinary answers.

    Source: arXiv 2507.01679, section 3. The paper's last value of `low` is not known; `end` is 0.05 for "near 0".
    """

    PAPER: ClassVar[str] = "arXiv 2507.01679"
    NEEDS: ClassVar[tuple[str, ...]] = ("demonstrations",)
    SETTINGS: ClassVar = (
        {},
        {"group": 4},
        {"hybrids": 2},
        {"high": 0.5},
        {"end": 0.5},
        {"horizon": 0.5},
        {"least": 12},
        {"a": 5.0},
        {"b": 5.0},
    )

    group: int = Field(
        8,
        ge=2,
        description="Answers to each prompt, hybrids included. More make the comparison less noisy; the cost grows in "
        "proportion. The paper's control has 8.",
    )
    hybrids: int = Field(
        1,
        ge=0,
        description="Answers of each group that continue the beginning of the gold answer. More imitates more; the "
        "paper has 1, and 0 is `plain`.",
    )
    high: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Upper bound of the prefix's share of the gold answer, and first value of the lower bound. Larger "
        "imitates more; the paper has 0.95.",
    )
    end: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Last value of the lower bound of that share, which falls along half a cosine. The paper has a "
        "value near 0.",
    )
    horizon: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the budget over which the lower bound falls. Smaller ends the imitation sooner; the "
        "paper has 1, all of training.",
    )
    least: int = Field(
        0,
        ge=0,
        description="Smallest number of tokens of a prefix; a prefix never contains the gold answer's last token.",
    )
    a: float = Field(
        1.0,
        gt=0,
        description="Parameter a of the Beta distribution between the two bounds. Larger draws longer prefixes; a = b "
        "= 1 is uniform, as in the paper.",
    )
    b: float = Field(
        1.0,
        gt=0,
        description="Parameter b of the Beta distribution between the two bounds. Larger draws shorter prefixes; a = b"
        " = 1 is uniform, as in the paper.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hybrids > self.group:
            raise ValueError(f"a group of {self.group} answers cannot have {self.hybrids} hybrids")
        return self

    def low(self, progress: float) -> float:
        """The lower bound of the prefix's share of the demonstration, at this share of the budget."""
        if progress > self.horizon:
            return self.end
        return self.end + 0.5 * (1 + math.cos(math.pi * progress / self.horizon)) * (self.high - self.end)

    def length(self, ratio: float, demonstration: int) -> int:
        """Prefix length for this share of a demonstration of so many tokens; 0: an ordinary answer."""
        if ratio <= 0 or demonstration < 2:
            return 0
        # 1e-9 against rounding: 0.58 · 50 is 28.999999999999996. At least the last token is left to the model.
        return min(max(math.floor(ratio * demonstration + 1e-9), self.least), demonstration - 1)

    def rounds(self, prompt: Prompt, ctx: Context) -> Rounds:
        demonstration = list(prompt.demonstration or ())
        # `end` may be above `high`; the bounds then change places.
        low, high = sorted((self.low(ctx.progress), self.high))
        lengths = []
        for index in range(self.hybrids):
            # Negative indices: the seeds of requests use 0 and up.
            draw = float(numpy.random.default_rng(ctx.seed(0, -1 - index)).beta(self.a, self.b))
            lengths.append(self.length(low + (high - low) * draw, len(demonstration)))
        ordinary = [prompt.request() for _ in range(self.group - self.hybrids)]
        hybrid = [prompt.request(forced=demonstration[:length], train_forced=length > 0) for length in lengths]
        scored = yield [*ordinary, *hybrid]
        prefix_lengths = [length for length in lengths if length]
        facts = {"prefix": sum(prefix_lengths) / len(prefix_lengths) / len(demonstration)} if prefix_lengths else {}
        answers_of = {"plain_reward": scored[: len(ordinary)], "hybrid_reward": scored[len(ordinary) :]}
        for name, answers in answers_of.items():
            rewards = [answer.reward for answer in answers if answer.reward is not None]
            if rewards and prefix_lengths:
                facts[name] = sum(rewards) / len(rewards)
        return [Group(prompt, tuple(scored), facts=facts)]
