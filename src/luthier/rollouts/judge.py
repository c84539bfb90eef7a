"""A judge of trajectories: decodes them to answers, and asks the rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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

    Forced tokens are part of the answer; a context behind the prompt is not. An answer that ended in an error has no
    reward, and its group is judged without that answer.

    Args:
        rewards: score the answers of a group.
        decode: token ids to text.
        end_ids: tokens that end a turn; one at the end of an answer is not part of the answer's text.
        gold, prompt_text: the renderer's texts of a record's gold answer and prompt.
    """

    def answers(record: Record, trajectories: Sequence[Trajectory]) -> list[Answer]:
        # Rendered once for the group: rendering a record takes a millisecond.
        gold_and_prompt = gold(record), prompt_text(record)
        decoded: list[Answer] = []
        for trajectory in trajectories:
            ids = list(trajectory.ids)
            text = decode(ids[:-1] if ids and ids[-1] in end_ids else ids)
            decoded.append(Answer(text, record, *gold_and_prompt, len(ids), trajectory.finish))
        return decoded

    def judge(asked: Sequence[tuple[Prompt, Sequence[Trajectory]]]) -> list[list[Scored]]:
        judged: list[list[Scored]] = []
        for prompt, trajectories in asked:
            complete = [trajectory for trajectory in trajectories if trajectory.finish != "error"]
            reward_sums = iter(rewards(answers(prompt.record, complete)) if complete else ())
            scored: list[Scored] = []
            for trajectory in trajectories:
                reward = None if trajectory.finish == "error" else next(reward_sums)
                if reward is None:
                    scored.append(Scored(trajectory, None))
                else:
                    scored.append(Scored(trajectory, reward.value, reward.parts, rewards.weights))
            judged.append(scored)
        return judged

    return judge
