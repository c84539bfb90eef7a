from collections import Counter
from dataclasses import replace

import numpy
import pytest

from luthier.data.batches import collate
from luthier.errors import DataError, RecipeError, RunError
from luthier.rollouts.base import (
    Advantage,
    Context,
    Memory,
    Rollout,
    Strategy,
    build_chain,
    credit,
    row_id,
    rows_of,
)
from luthier.rollouts.base import Group as Grouped
from luthier.rollouts.drive import drive, measures, refill
from luthier.types import Sampling, Scored, Trajectory
from support.scripted import END, Sampler, judge, play, prompt, rollout


class Twice(Strategy):
    """Two answers; where both fail, two more behind a hint."""

    def rounds(self, prompt, ctx):
        first = yield [prompt.request(), prompt.request()]
        if any(answer.reward for answer in first):
            return [Grouped(prompt, tuple(first))]
        second = yield [prompt.request(context=[7]), prompt.request(context=[7])]
        return [Grouped(prompt, tuple(second), (7,), {"hinted": 1.0})]


class Forced(Strategy):
    """One free answer and one with forced tokens."""

    train: bool = True

    def rounds(self, prompt, ctx):
        return [
            Grouped(prompt, tuple((yield [prompt.request(), prompt.request(forced=[3, 4], train_forced=self.train)])))
        ]


class Keep(Advantage):
    """Every token gets the reward of its answer."""

    def compute(self, rollout, values):
        return rollout.totals(values)


def hinted(request):
    return [8, END] if request.prompt_ids[-1] == 7 else [1, END]


def won(trajectory):
    return float(8 in trajectory.ids or trajectory.record == "easy")


def test_all_prompts_advance_in_lock_step_and_a_round_sees_its_rewards():
    groups, sampler = play(Twice(), [prompt("easy"), prompt("hard"), prompt("hard2")], hinted, won)
    assert [[request.record for request in asked] for asked in sampler.asked] == [
        ["easy"] * 2 + ["hard"] * 2 + ["hard2"] * 2,
        ["hard"] * 2 + ["hard2"] * 2,
    ]
    assert [group.prompt.record.id for group in groups] == ["easy", "hard", "hard2"]
    assert [group.context for group in groups] == [(), (7,), (7,)]
    assert [group.rewards for group in groups] == [[1, 1]] * 3
    assert measures(groups) == {
        "reward": 1.0,
        "length": 2.0,
        "truncated": 0.0,
        "informative_groups": 0.0,
        "rollout/hinted": 1.0,
    }


def test_seeds_depend_on_seed_rollout_record_round_and_index_and_on_no_other_prompt():
    _, together = play(Twice(), [prompt("easy"), prompt("hard")], hinted, won)
    _, alone = play(Twice(), [prompt("hard")], hinted, won)
    seeds = [request.seed for asked in alone.asked for request in asked]
    assert seeds == [request.seed for asked in together.asked for request in asked if request.record == "hard"]
    assert len(set(seeds)) == 4
    for change in ({"seed": 2}, {"rollout": 1}):
        _, other = play(Twice(), [prompt("hard")], hinted, won, **change)
        assert not set(seeds) & {request.seed for asked in other.asked for request in asked}


def test_a_record_drawn_twice_in_a_rollout_is_sampled_anew():
    occurrences = Counter()
    first, sampler = play(Twice(), [prompt("hard")], hinted, won, occurrences=occurrences)
    second, again = play(Twice(), [prompt("hard")], hinted, won, occurrences=occurrences)
    assert sampler.asked[0][0].seed != again.asked[0][0].seed
    names = [row.id for row in rows_of([*first, *second])]
    assert names == ["hard#0.1.0", "hard#0.1.1", "hard#0~1.1.0", "hard#0~1.1.1"]


def test_requests_of_a_prompt_share_a_group_and_those_with_other_names_are_judged_apart():
    class Apart(Strategy):
        def rounds(self, prompt, ctx):
            asked = [replace(prompt.request(), group=name) for name in ("x", "y", "x")]
            return [Grouped(prompt, tuple((yield asked)))]

    sizes = []

    def count(asked):
        sizes.append([len(answers) for _, answers in asked])
        return [[Scored(answer, float(index)) for index, answer in enumerate(answers)] for _, answers in asked]

    sampler = Sampler(lambda request: [1])
    settings = {"sampling": Sampling(), "seed": 0, "rollout": 0, "decode": str, "end_ids": {END}}
    groups = drive(Apart(), [prompt("a"), prompt("b")], sampler, count, **settings)
    assert sizes == [[2, 1, 2, 1]]
    assert [answer.reward for answer in groups[0].members] == [0, 0, 1]
    assert len({request.group for request in sampler.asked[0]}) == 4


def test_rows_hold_prompt_context_and_answer_and_each_value_is_at_its_own_token():
    groups, _ = play(
        Forced(), [prompt(ids=(5, 6))], lambda request: [8, END], lambda trajectory: float(trajectory.ids[0] == 3)
    )
    columns = {
        "old_logprobs": {"a#0.0.0": numpy.array([0, 0, -1.0, -2]), "a#0.0.1": numpy.array([0, 0, -3.0, -4, -5, -6])}
    }
    sampled = Rollout.of(groups, columns)
    assert [tokens.tolist() for tokens in sampled.columns["old_logprobs"]] == [[-1, -2], [-3, -4, -5, -6]]
    rows = rows_of(groups, credit([Keep()], sampled), sampled.columns)
    assert [row.ids.tolist() for row in rows] == [[5, 6, 8, END], [5, 6, 3, 4, 8, END]]
    streams = {name: stream.values.tolist() for name, stream in rows[1].streams.items()}
    assert streams == {
        "weights": [0, 0, 1, 1, 1, 1],
        "forced": [0, 0, 1, 1, 0, 0],
        "advantages": [0, 0, 1, 1, 1, 1],
        "old_logprobs": [0, 0, -3, -4, -5, -6],
    }
    batch = collate(rows)
    assert batch.at_targets("old_logprobs").tolist() == [-1, -2, -3, -4, -5, -6]
    assert batch.at_targets("advantages").tolist() == [0, 0, 1, 1, 1, 1]


def test_forced_tokens_are_targets_only_if_the_request_trains_them():
    groups, _ = play(Forced(train=False), [prompt()], lambda request: [8, END], lambda trajectory: 1.0)
    row = rows_of(groups)[1]
    assert row.streams["weights"].values.tolist() == [0, 0, 0, 0, 1, 1]
    assert row.targets == 2
    assert Rollout.of(groups).start_values()[1].tolist() == [0, 0, 0, 1]


def test_the_context_of_a_group_is_part_of_the_question():
    groups, _ = play(Twice(), [prompt("hard")], hinted, won)
    row = rows_of(groups)[0]
    assert row.ids.tolist() == [5, 6, 7, 8, END]
    assert row.streams["weights"].values.tolist() == [0, 0, 0, 1, 1]


def test_truncated_and_failed_answers_can_be_left_out():
    groups, _ = play(Forced(), [prompt()], lambda request: [8], lambda trajectory: 1.0)
    members = tuple(
        replace(answer, trajectory=replace(answer.trajectory, finish=finish))
        for answer, finish in zip(groups[0].members, ("length", "error"), strict=True)
    )
    cut = [replace(groups[0], members=members)]
    assert [row.id for row in rows_of(cut)] == ["a#0.0.0"]
    assert rows_of(cut, mask_truncated=True) == []


def test_a_chain_starts_from_the_reward_at_the_last_token_and_ends_without_nan():
    sampled = rollout([1.0, None, 3.0], lengths=[2, 3, 1])
    assert [tokens.tolist() for tokens in sampled.start_values()[::2]] == [[0, 1], [3]]
    assert [tokens.tolist() for tokens in credit([Keep()], sampled)] == [[1, 1], [0, 0, 0], [3]]


def test_sampler_logprobs_become_a_column_where_all_have_them():
    groups, _ = play(Forced(), [prompt()], lambda request: [8], lambda trajectory: 1.0)
    assert "sampler_logprobs" not in Rollout.of(groups).columns
    members = tuple(
        replace(answer, trajectory=replace(answer.trajectory, logprobs=[-0.5] * len(answer.trajectory.ids)))
        for answer in groups[0].members
    )
    sampled = Rollout.of([replace(groups[0], members=members)])
    assert sampled.columns["sampler_logprobs"][1].tolist() == [-0.5] * 3


def test_mistakes_raise_clear_errors():
    with pytest.raises(RunError, match=r"has a reward.*r0"):
        credit([Keep()], rollout([None, None]))
    with pytest.raises(RecipeError, match="empty"):
        credit([], rollout([1.0, 0.0]))
    with pytest.raises(RunError, match="record r0 has 1"):
        rollout([1.0]).by_group("group_norm")

    class Reader(Keep):
        READS = ("values",)

    with pytest.raises(RecipeError, match="values"):
        credit([Reader()], rollout([1.0, 0.0]))

    class Short(Keep):
        def compute(self, rollout, values):
            return values[1:]

    with pytest.raises(RunError, match="numbers for 1 of 2 answers"):
        credit([Short()], rollout([1.0, 0.0]))

    class Needing(Twice):
        NEEDS = ("demonstrations",)

    Needing().check([prompt("a"), prompt("b", demonstration=[1])])
    with pytest.raises(DataError, match=r"the first is a, test:1"):
        Needing().check([prompt("a"), prompt("b")])


def test_a_strategy_without_end_and_a_sampler_that_leaves_answers_out_are_refused():
    class Endless(Strategy):
        def rounds(self, prompt, ctx):
            while True:
                yield [prompt.request()]

    with pytest.raises(RunError, match="more than"):
        play(Endless(), [prompt()], lambda request: [1], lambda trajectory: 1.0)
    settings = {"sampling": Sampling(), "seed": 0, "rollout": 0, "decode": str, "end_ids": {END}}
    with pytest.raises(RunError, match="0 continuations for 2"):
        drive(Twice(), [prompt()], lambda requests, sampling: [], judge(won), **settings)

    def forgets(requests, sampling):
        return [Trajectory([1], "stop", request.record) for request in requests]

    with pytest.raises(RunError, match="forced"):
        drive(Forced(), [prompt()], forgets, judge(won), **settings)


def test_refill_draws_until_enough_groups_have_unequal_rewards():
    """DAPO: 2 groups with unequal rewards need 5 prompts; the groups in between are dropped."""
    stock = [prompt(name) for name in ("flat1", "good1", "flat2", "flat3", "good2", "good3")]
    drawn = []

    def draw(count):
        taken = stock[len(drawn) : len(drawn) + count]
        drawn.extend(taken)
        return taken

    def deal(prompts):
        rewards = {True: (1.0, 0.0), False: (0.0, 0.0)}
        return [
            Grouped(question, tuple(Scored(None, value) for value in rewards[question.record.id.startswith("good")]))
            for question in prompts
        ]

    refilled = refill(draw, deal, wanted=2)
    assert [group.prompt.record.id for group in refilled.groups] == ["good1", "good2"]
    assert (refilled.prompts, len(refilled.all_groups)) == (5, 5)
    drawn.clear()
    assert [group.prompt.record.id for group in refill(draw, deal, wanted=2, tries=2).groups] == ["good1"]
    drawn.clear()
    assert refill(lambda count: [], deal, wanted=2).groups == []


def test_memory_survives_a_checkpoint():
    memory, other = Memory(), Memory()
    memory.values["a"] = 3
    other.load_state_dict(memory.state_dict())
    assert other.values == {"a": 3}


def test_a_chain_is_built_from_what_a_recipe_writes(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from luthier.rollouts.base import Advantage\n\n\nclass Mine(Advantage):\n    scale: float = 1.0\n\n"
        "    def compute(self, rollout, values):\n        return [self.scale * value for value in values]\n"
    )
    chain = build_chain(["./mine.py", {"kind": "./mine.py", "scale": 3.0}], tmp_path)
    sampled = rollout([1.0, 0.0])
    assert [tokens.tolist() for tokens in credit(chain, sampled)] == [[0, 3], [0, 0]]
    assert len(build_chain("./mine.py", tmp_path)) == 1


def test_the_strategys_own_draws_are_keyed():
    ctx = Context((0, 0, "a", 0), 0.0, None, str, frozenset(), 8)
    assert ctx.seed(0, -1) == Context((0, 0, "a", 0), 0.9, None, str, frozenset(), 8).seed(0, -1)
    assert ctx.seed(0, -1) != ctx.seed(0, -2)
    assert row_id(rollout([1.0, 0.0]).members[1].trajectory) == "r0#0.0.1"
