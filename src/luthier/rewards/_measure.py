"""What rewards about length share."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.rewards.base import Answer, Judged, Reward


def length_of(answer: Answer, unit: str) -> int:
    """Length in "tokens" or "characters"."""
    return answer.tokens if unit == "tokens" else len(answer.text)


def is_right(reward: Reward, answers: Sequence[Answer]) -> list[bool | None]:
    """Which answers another reward values at 1 or more; None where it does not apply."""
    found = [one.value if isinstance(one, Judged) else one for one in reward.score_group(answers)]
    return [None if value is None else value >= 1 for value in found]
