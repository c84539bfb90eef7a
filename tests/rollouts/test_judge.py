from dataclasses import replace

from luthier.rewards.base import Reward, build_rewards
from luthier.rollouts.judge import judge_by
from luthier.types import Trajectory
from support.scripted import END, prompt


class Size(Reward):
    def score_group(self, answers):
        return [len(answers) + 10 * len(answer.text) + (answer.gold == "gold") for answer in answers]


def test_answers_are_judged_by_group_without_end_tokens_and_without_those_that_ended_in_an_error():
    whole = Trajectory([7, 8, END], "stop", "a")
    cut, broken = replace(whole, ids=[7], finish="length"), replace(whole, ids=[], finish="error")
    judge = judge_by(build_rewards([Size()]), lambda ids: "x" * len(ids), {END}, lambda record: "gold")
    first, second = judge([(prompt(), [whole, broken, cut]), (prompt("b"), [broken])])
    assert [answer.reward for answer in first] == [23, None, 13]
    assert [answer.trajectory for answer in first] == [whole, broken, cut]
    assert [answer.reward for answer in second] == [None]
    assert list(first[0].parts.values()) == [23]


def test_rewards_see_the_record_the_length_and_how_an_answer_ended():
    judged = []

    class Looks(Reward):
        def score(self, answer):
            judged.append((answer.text, answer.record.id, answer.prompt, answer.tokens, answer.finish))
            return 1.0

    ids = Trajectory([7, END], "stop", "a")
    judge = judge_by(build_rewards([Looks()]), str, {END}, lambda record: "", lambda record: "asked")
    judge([(prompt(), [ids, replace(ids, ids=[7, 7], finish="length")])])
    assert judged == [("[7]", "a", "asked", 2, "stop"), ("[7, 7]", "a", "asked", 2, "length")]
