"""From trajectories to answers and back: how rewards judge what a sampler wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from luthier.rewards.base import Answer, Rewards
from luthier.rollouts.base import Judge, Prompt
from luthier.types import Record, Scored, Trajectory


def judge_by(
    rewards: Rewards,
    decode: Callable[[Sequence[int]], str],
    end_ids: set[int] | frozenset[int],
    gold: Callable[[Record], str],
    prompt_text: Callable[[Record], str] = lambda record: "",
) -> Judge:
    """A judge that decodes answers and asks the rewards, group by group.

    Forced tokens are part of the answer, a context behind the prompt is not. An answer that broke off in an error has
    no reward, and its group is judged without it.

    Args:
        decode: token ids to text.
        end_ids: tokens that end a turn; one at the end of an answer is not part of its text.
        gold, prompt_text: what the renderer says of a record.
    """

    def answers(record: Record, trajectories: Sequence[Trajectory]) -> list[Answer]:
        known = gold(record), prompt_text(record)  # said once for the group: rendering a record takes a millisecond
        found = []
        for one in trajectories:
            ids = list(one.ids)
            text = decode(ids[:-1] if ids and ids[-1] in end_ids else ids)
            found.append(Answer(text, record, *known, len(ids), one.finish))
        return found

    def judge(asked: Sequence[tuple[Prompt, Sequence[Trajectory]]]) -> list[list[Scored]]:
        judged = []
        for prompt, trajectories in asked:
            whole = [one for one in trajectories if one.finish != "error"]
            verdicts: Any = iter(rewards(answers(prompt.record, whole)) if whole else ())
            judged.append([_scored(one, None if one.finish == "error" else next(verdicts)) for one in trajectories])
        return judged

    return judge


def _scored(trajectory: Trajectory, verdict: Any) -> Scored:
    return Scored(trajectory, None) if verdict is None else Scored(trajectory, verdict.value, verdict.parts)
