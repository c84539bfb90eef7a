"""Length and rightness of answers, for the rewards of length."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.rewards.base import Answer, Judged, Reward


def length_of(answer: Answer, unit: str) -> int:
    """Length of an answer in `unit`: "tokens" (including the end of turn) or "characters"."""
    return answer.tokens if unit == "tokens" else len(answer.text)


def is_right(reward: Reward, answers: Sequence[Answer]) -> list[bool | None]:
    """Whether another reward gives each answer 1 or more; None if it does not apply to the answer."""
    right: list[bool | None] = []
    for judged in reward.score_group(answers):
        number = judged.value if isinstance(judged, Judged) else judged
        right.append(None if number is None else number >= 1)
    return right
