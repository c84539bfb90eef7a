import math

import numpy
import pytest

from luthier.errors import DataError
from luthier.parts import build
from luthier.rollouts.base import Rollout, build_chain, credit, rows_of
from luthier.rollouts.strategies._episodes import cut, sentence_ends
from support.scripted import END, play, prompt

TWENTY = tuple(range(10, 30))


def asked(sampler):
    """All requests that the sampler got, by round."""
    return [
        [
            (tuple(request.prompt_ids), tuple(request.forced_ids), request.train_forced, request.seed)
            for request in round
        ]
        for round in sampler.asked
    ]


def index_of(trajectory):
    return int(trajectory.request.metadata["row"].rsplit(".", 1)[1])


def test_plain_asks_for_a_group():
    groups, sampler = play(
        build("strategy", {"kind": "plain", "group": 3}), [prompt()], lambda request: [END], index_of
    )
    assert [len(round) for round in sampler.asked] == [3]
    assert [group.rewards for group in groups] == [[0, 1, 2]]


# Prefix-RFT


def test_the_schedule_of_the_prefix():
    strategy = build("strategy", "prefix")
    lows = [strategy.low(step / 100) for step in (0, 25, 50, 75, 100)]
    assert lows == [pytest.approx(value, abs=1e-6) for value in (0.95, 0.818198, 0.5, 0.181802, 0.05)]
    means = [(strategy.low(step / 100) + strategy.high) / 2 for step in (0, 50, 100)]
    assert means == [pytest.approx(value) for value in (0.95, 0.725, 0.5)]
    half = build("strategy", {"kind": "prefix", "horizon": 0.5})
    assert [half.low(p) for p in (0.25, 0.5, 0.51, 1)] == [pytest.approx(v) for v in (0.5, 0.05, 0.05, 0.05)]


def test_the_length_of_the_prefix():
    strategy = build("strategy", "prefix")
    assert [strategy.length(ratio, 10) for ratio in (0.95, 1, 0.1, 0.05, 0)] == [9, 9, 1, 0, 0]
    assert strategy.length(0.7, 10) == 7
    assert [strategy.length(1, size) for size in (0, 1, 2)] == [0, 0, 1]
    least = build("strategy", {"kind": "prefix", "least": 4})
    assert [least.length(ratio, 10) for ratio in (0.1, 0, 1)] == [4, 0, 9]
    assert least.length(0.5, 3) == 2


def test_one_answer_of_the_group_continues_the_demonstration():
    strategy = build("strategy", {"kind": "prefix", "group": 4, "high": 0.5, "end": 0.5})
    groups, sampler = play(strategy, [prompt(demonstration=TWENTY)], lambda request: [8, END], index_of)
    assert [(forced, train) for _, forced, train, _ in asked(sampler)[0]] == [((), False)] * 3 + [(TWENTY[:10], True)]
    assert groups[0].facts == {"prefix": 0.5, "plain_reward": 1.0, "hybrid_reward": 3.0}
    row = rows_of(groups, credit(build_chain("center"), Rollout.of(groups)))[3]
    assert row.ids.tolist() == [5, 6, *TWENTY[:10], 8, END]
    assert row.streams["weights"].values.tolist() == [0, 0] + [1] * 12
    assert row.streams["forced"].values.tolist() == [0, 0] + [1] * 10 + [0, 0]
    assert row.streams["advantages"].values.tolist() == [0, 0] + [1.5] * 12


def test_ratios_lie_between_the_bounds_and_are_keyed():
    strategy = build("strategy", {"kind": "prefix", "group": 2})

    def shares(progress, **more):
        prompts = [prompt(f"p{i}", demonstration=range(1000)) for i in range(50)]
        _, sampler = play(strategy, prompts, lambda request: [END], index_of, progress=progress, **more)
        return [len(forced) / 1000 for _, forced, _, _ in asked(sampler)[0] if forced]

    late = shares(1.0)
    assert len(late) == 50 and 0.05 <= min(late) < 0.2 and 0.8 < max(late) <= 0.95
    assert 0.4 < sum(late) / 50 < 0.6
    assert shares(0.0) == [0.95] * 50
    assert late == shares(1.0)
    assert late != shares(1.0, seed=2) and late != shares(1.0, rollout=1)


def test_without_a_prefix_it_is_plain_to_the_last_bit():
    plain = build("strategy", {"kind": "plain", "group": 4})
    for options, demonstration in (({"high": 0, "end": 0}, TWENTY), ({}, None), ({}, (3,)), ({"hybrids": 0}, TWENTY)):
        strategy = build("strategy", {"kind": "prefix", "group": 4, **options})
        prompts = [prompt(demonstration=demonstration)]
        groups, sampler = play(strategy, prompts, lambda request: [request.seed % 7, END], index_of)
        others, other = play(plain, prompts, lambda request: [request.seed % 7, END], index_of)
        assert asked(sampler) == asked(other)
        assert [row.ids.tolist() for row in rows_of(groups)] == [row.ids.tolist() for row in rows_of(others)]
        assert [row.targets for row in rows_of(groups)] == [row.targets for row in rows_of(others)]


def test_strategies_that_need_demonstrations_refuse_prompts_without_any():
    for name in ("prefix", "branch"):
        with pytest.raises(DataError, match=f"`{name}`.*the first is a"):
            build("strategy", name).check([prompt()])
        build("strategy", name).check([prompt(), prompt("b", demonstration=[1, 2])])


# BREAD


def halfway(threshold):
    """Half of a group succeeds behind a hint of at least so many episodes of two tokens."""

    def reward(trajectory):
        episodes = (len(trajectory.request.prompt_ids) - 2) // 2
        return float(episodes >= threshold and index_of(trajectory) % 2 == 0)

    return reward


def probes(sampler):
    return [(len(round[0].prompt_ids) - 2) // 2 for round in sampler.asked[1:]]


def branch(reward, state=None, demonstration=TWENTY, **options):
    strategy = build("strategy", {"kind": "branch", "cut": "tokens", **options})
    more = {} if state is None else {"state": state}
    return play(strategy, [prompt(demonstration=demonstration)], lambda request: [8, END], reward, **more)


def test_the_search_finds_the_shortest_hint_that_helps():
    groups, sampler = branch(halfway(7))
    assert probes(sampler) == [5, 7, 6]
    assert groups[0].context == TWENTY[:14]
    assert groups[0].facts == {"unaided": 0.0, "probes": 3.0, "hint": 0.7}
    assert groups[0].rewards == [1, 0] * 4
    row = rows_of(groups)[0]
    assert row.ids.tolist() == [5, 6, *TWENTY[:14], 8, END]
    assert row.streams["weights"].values.tolist() == [0] * 16 + [1, 1]


def test_where_no_hint_helps_the_prompt_is_skipped_or_its_unaided_group_kept():
    groups, sampler = branch(halfway(99))
    assert (probes(sampler), groups) == ([5, 7, 8, 9], [])
    kept, _ = branch(halfway(99), keep_failed=True)
    assert (kept[0].context, kept[0].rewards) == ((), [0] * 8)
    assert not numpy.any(credit(build_chain("group_norm"), Rollout.of(kept)))


def test_where_every_hint_helps_the_first_episode_is_shown():
    groups, sampler = branch(halfway(1))
    assert probes(sampler) == [5, 2, 1]
    assert groups[0].context == TWENTY[:2]


def test_where_it_succeeds_unaided_or_has_no_hint_it_is_plain_to_the_last_bit():
    plain, other = play(build("strategy", "plain"), [prompt()], lambda request: [8, END], halfway(0))
    for options in ({}, {"episodes": 1}, {"demonstration": None}):
        groups, sampler = branch(halfway(0), **options)
        assert asked(sampler) == asked(other)
        assert [row.id for row in rows_of(groups)] == [row.id for row in rows_of(plain)]
    for options in ({"episodes": 1}, {"demonstration": None}, {"demonstration": (1,)}):
        groups, sampler = branch(halfway(99), keep_failed=True, **options)
        assert asked(sampler) == asked(other)


def test_a_branched_group_has_advantages_of_mean_zero_and_one_that_is_positive():
    groups, _ = branch(halfway(7))
    credits = [tokens[0] for tokens in credit(build_chain("group_norm"), Rollout.of(groups))]
    assert sum(credits) == pytest.approx(0, abs=1e-12)
    assert max(credits) > 0


def test_a_hint_that_makes_every_answer_right_teaches_nothing():
    def reward(trajectory):
        episodes = (len(trajectory.request.prompt_ids) - 2) // 2
        return float(episodes >= 6) or float(episodes == 5 and index_of(trajectory) == 0)

    assert branch(lambda trajectory: float(len(trajectory.request.prompt_ids) >= 2 + 12))[0] == []
    groups, _ = branch(reward, enough=0.5)
    assert groups[0].context == TWENTY[:10]  # 1 of 8 right: less than enough, but not nothing


def test_the_anchor_of_the_last_rollout_is_tried_first():
    strategy = build("strategy", "branch")
    memory = strategy.start()
    _, first = branch(halfway(7), memory)
    assert (probes(first), memory.state_dict()) == ([5, 7, 6], {"a": 7})
    again = strategy.start()
    again.load_state_dict(memory.state_dict())
    _, second = branch(halfway(7), again)
    assert probes(second) == [7, 6]
    _, third = branch(halfway(3), again)
    assert (probes(third), again.values) == ([7, 6, 3, 1, 2], {"a": 3})
    _, harder = branch(halfway(8), again)
    assert (probes(harder), again.values) == ([3, 6, 8, 7], {"a": 8})
    branch(halfway(0), again)
    assert again.values == {}
    _, without = branch(halfway(7), memory, warm_start=False)
    assert probes(without) == [5, 7, 6]


def test_early_stop_takes_the_first_hint_within_the_band():
    assert probes(branch(halfway(1), early_stop=True)[1]) == [5]
    assert probes(branch(halfway(1), early_stop=True, plenty=0.4)[1]) == [5, 2, 1]


def test_unaided_success_can_be_asked_to_be_higher():
    assert probes(branch(halfway(0), enough=0.6)[1]) == [5, 7, 8, 9]
    assert probes(branch(lambda trajectory: 0.4)[1]) == [5, 7, 8, 9]
    assert probes(branch(lambda trajectory: 0.4, success=0.3)[1]) == []


def test_several_prompts_search_in_the_same_rounds():
    strategy = build("strategy", {"kind": "branch", "cut": "tokens"})
    prompts = [prompt(name, demonstration=TWENTY) for name in ("a", "b", "c")]
    needed = {"a": 0, "b": 7, "c": 1}
    groups, sampler = play(
        strategy, prompts, lambda request: [8], lambda trajectory: halfway(needed[trajectory.record])(trajectory)
    )
    assert [len(round) for round in sampler.asked] == [24, 16, 16, 16]
    assert [len(group.context) for group in groups] == [0, 14, 2]


def letters(ids):
    return "".join(chr(code) for code in ids)


def test_episodes_end_where_sentences_do():
    text = "One is 1.5 big. Two?\nThree follows! Four"
    ids = [ord(letter) for letter in text]
    ends = sentence_ends(ids, letters)
    pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    assert pieces == ["One is 1.5 big.", " Two?\n", "Three follows!", " Four"]


def test_episodes_are_nearly_equal_and_no_more_than_there_are_sentences():
    assert cut(range(20), 10, None) == list(range(2, 20, 2))
    assert cut(range(21), 4, None) == [5, 10, 16]
    assert cut(range(3), 10, None) == [1, 2]
    assert cut([1], 10, None) == cut([], 10, None) == cut(range(20), 1, None) == []
    ids = [ord(letter) for letter in "aaaa. b. c. ddddddddd. e. f"]
    assert len(cut(ids, 10, letters)) == 5
    three = cut(ids, 3, letters)
    assert len(three) == 2 and three == sorted(set(three)) and set(three) <= set(sentence_ends(ids, letters))


# Both, as a whole


def chain_run(strategy, seed, updates=400, steps=20):
    """The tabular chain: binary decisions, all of which must match; success, share of hints, rollouts by update."""
    logits = numpy.zeros((steps, 2))
    expert = numpy.random.default_rng(seed + 1000).integers(0, 2, steps)
    solution = [10 + int(bit) for bit in expert]
    prompts = [prompt(ids=(5,), demonstration=solution)]
    state, curve, hints, count = strategy.start(), [], [], 0

    def chances():
        return numpy.exp(logits[:, 1]) / numpy.exp(logits).sum(1)

    def answer(request):
        start = len(request.prompt_ids) - 1
        draws = numpy.random.default_rng(request.seed).random(steps)[start:]
        return [10 + int(bit) for bit in draws < chances()[start:]]

    def reward(trajectory):
        return float([*trajectory.request.prompt_ids[1:], *trajectory.ids] == solution)

    for number in range(updates):
        more = {"state": state, "seed": seed, "rollout": number}
        groups, sampler = play(strategy, prompts, answer, reward, **more)
        count += sum(len(round) for round in sampler.asked)
        sampled = Rollout.of(groups)
        gradient = numpy.zeros_like(logits)
        for member, advantage in zip(sampled.members, credit(build_chain("group_norm"), sampled), strict=True):
            start = len(member.trajectory.request.prompt_ids) - 1
            p = chances()[start:]
            taken = numpy.array(member.trajectory.ids) - 10
            per_step = numpy.stack([(taken == 0) - (1 - p), (taken == 1) - p], 1) * advantage[:, None]
            gradient[start:] += per_step / len(taken) / len(sampled.members)
        logits += 5.0 * gradient
        hints.append(groups[0].facts.get("hint", 0.0) if groups else 0.0)
        p = chances()
        curve.append(float(numpy.prod(numpy.where(expert == 1, p, 1 - p))))
    return curve, hints, count


def test_branching_learns_a_chain_that_plain_rollouts_never_solve():
    """The card's measurement: success above one half at update 125-140, 0.91-0.93 at the end, hints gone."""
    curve, _, count = chain_run(build("strategy", "plain"), seed=0)
    assert curve == [2.0**-20] * 400 and count == 3200
    for seed in (0, 1):
        curve, hints, count = chain_run(
            build("strategy", {"kind": "branch", "cut": "tokens", "warm_start": False}), seed
        )
        assert 120 <= next(step for step, value in enumerate(curve) if value > 0.5) <= 145
        assert 0.90 <= curve[-1] <= 0.94
        assert 0.5 <= sum(hints[:20]) / 20 <= 0.68
        assert hints[-20:] == [0.0] * 20
        assert 4700 <= count <= 5700


def test_warm_starts_reach_the_same_with_fewer_rollouts():
    cold, warm = (
        chain_run(build("strategy", {"kind": "branch", "cut": "tokens", "warm_start": on}), 3, updates=200)
        for on in (False, True)
    )
    assert warm[2] < cold[2]
    assert warm[0][-1] > 0.5


def test_a_fixed_half_hint_never_trains_the_first_half():
    """The control that must fail: half of the solution in front of every group."""
    from luthier.rollouts.base import Group, Strategy

    class Half(Strategy):
        def rounds(self, prompt, ctx):
            hint = list(prompt.demonstration[:10])
            scored = yield [prompt.request(context=hint) for _ in range(8)]
            return [Group(prompt, tuple(scored), tuple(hint))]

    curve, _, _ = chain_run(Half(), seed=0)
    assert max(curve) <= 2.0**-10
    assert math.isclose(curve[-1], 2.0**-10, rel_tol=0.9)
