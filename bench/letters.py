"""The reward of grpo.py: how many different characters an answer has, so that answers of a group rarely tie."""

from luthier.rewards.base import Answer, Reward


class Letters(Reward):
    """The number of different characters of an answer."""

    def score(self, answer: Answer) -> float:
        return float(len(set(answer.text)))
