import math
from dataclasses import replace

import numpy
import pytest

from luthier.errors import RecipeError, RunError
from luthier.parts import build, catalogue, load
from luthier.rollouts.base import Rollout, build_chain, check_chain, credit, rows_of
from support.scripted import rollout, with_parts


def advantages(chain, sampled):
    return credit(build_chain(chain), sampled)


def firsts(chain, sampled):
    return [float(tokens[0]) for tokens in advantages(chain, sampled)]


def near(*values):
    return [pytest.approx(value, abs=5e-6) for value in values]


def test_group_norm_uses_the_unbiased_deviation():
    assert firsts("group_norm", rollout([1, 0, 0, 0])) == near(1.49970, *[-0.49990] * 3)
    assert firsts("group_norm", rollout([1, 0, 0, 1])) == near(0.865875, -0.865875, -0.865875, 0.865875)
    assert firsts("group_norm", rollout([1, 1], [0, 0, 0])) == [0] * 5
    assert firsts([{"kind": "group_norm", "epsilon": 0.5}], rollout([1, 0, 0, 0])) == near(0.75, -0.25, -0.25, -0.25)


def test_center_and_leave_one_out():
    assert firsts("center", rollout([1, 0, 0, 0])) == near(0.75, -0.25, -0.25, -0.25)
    assert firsts("leave_one_out", rollout([1, 0, 0, 0])) == near(1, -1 / 3, -1 / 3, -1 / 3)
    sampled = rollout([3, 1, 4], [1, 5])
    assert firsts("leave_one_out", sampled) == near(
        *(factor * centred for factor, centred in zip([1.5] * 3 + [2] * 2, firsts("center", sampled), strict=True))
    )


def test_the_groups_of_prefix_rft():
    """N = 8: seven plain answers and one hybrid, the hybrid last."""
    assert firsts("center", rollout([0] * 7 + [1])) == near(*[-0.125] * 7, 0.875)
    assert firsts("center", rollout([1] * 6 + [0, 1]))[-1] == pytest.approx(0.125)
    assert firsts("center", rollout([1] * 7 + [0]))[-1] == pytest.approx(-0.875)


def test_batch_norm_divides_by_the_deviation_of_all_rewards():
    sampled = rollout([1, 0], [3, 3])
    std = numpy.std([1, 0, 3, 3], ddof=1) + 1e-4
    assert firsts("batch_norm", sampled) == near(0.5 / std, -0.5 / std, 0, 0)


def test_an_answer_without_reward_is_credited_with_nothing_and_does_not_move_the_others():
    for chain in ("group_norm", "center", "leave_one_out", "batch_norm"):
        first, *others = firsts(chain, rollout([1, 0, 0, 0]))
        assert firsts(chain, rollout([1, None, 0, 0, 0])) == near(first, 0, *others)
        assert firsts(chain, rollout([None, 1], [1, 0]))[:2] == [0, 0]


def test_a_scalar_is_given_to_every_token():
    per_token = advantages("center", rollout([1, 0], lengths=[3, 1]))
    assert [tokens.tolist() for tokens in per_token] == [[0.5] * 3, [-0.5]]


def test_a_group_of_one_is_refused_where_answers_are_compared():
    for chain in ("group_norm", "center", "leave_one_out", "batch_norm"):
        with pytest.raises(RunError, match=rf"`{chain}` compares.*r1 has 1"):
            advantages(chain, rollout([1, 0], [1]))
    assert firsts("returns", rollout([1], [0])) == [1, 0]


COLUMNS = {"values": [[0.1, 0.2, 0.5]]}


def test_gae_and_its_returns():
    for lam, wanted in ((0.95, (0.83625, 0.775, 0.5)), (1, (0.9, 0.8, 0.5)), (0, (0.1, 0.3, 0.5))):
        sampled = rollout([1], lengths=[3], columns=COLUMNS)
        assert advantages([{"kind": "gae", "lam": lam}], sampled)[0].tolist() == near(*wanted)
        if lam == 1:
            assert sampled.columns["returns"][0].tolist() == near(1, 1, 1)
    sampled = rollout([1], lengths=[3], columns=COLUMNS)
    assert advantages(["gae", "whiten"], sampled)[0].tolist() == near(0.73985, 0.39784, -1.13769)
    assert sampled.columns["returns"][0].tolist() == near(0.93625, 0.975, 1.0)
    row = rows_of(sampled.groups, advantages("gae", sampled), sampled.columns)[0]
    assert row.streams["returns"].values.tolist() == near(0, 0, 0.93625, 0.975, 1.0)


def test_gae_with_gamma_and_without_reward():
    """By hand: delta = (0 + .5·.2 - .1, 0 + .5·.5 - .2, 1 - .5), lam 0."""
    sampled = rollout([1], lengths=[3], columns=COLUMNS)
    assert advantages([{"kind": "gae", "lam": 0, "gamma": 0.5}], sampled)[0].tolist() == near(0, 0.05, 0.5)
    sampled = rollout([None, 1], lengths=[2, 1], columns={"values": [[0.3, 0.4], [0.2]]})
    assert [tokens.tolist() for tokens in advantages("gae", sampled)] == [[0, 0], near(0.8)]
    assert [tokens.tolist() for tokens in sampled.columns["returns"]] == [near(0.3, 0.4), near(1)]


def test_values_outside_trained_tokens_play_no_part():
    """A context-like prefix of two tokens that are given and not trained."""
    sampled = rollout([1], lengths=[5], columns={"values": [[9, 9, 0.1, 0.2, 0.5]]})
    sampled.trained[0][:2] = False
    assert advantages("gae", sampled)[0].tolist() == near(0, 0, 0.83625, 0.775, 0.5)
    assert advantages(["gae", "whiten"], sampled)[0].tolist() == near(0, 0, 0.73985, 0.39784, -1.13769)


def test_reinforce_plus_plus():
    """r_t = -beta (lp_old - lp_ref) and R at the end; the return is summed backwards and whitened over all tokens."""
    columns = {"old_logprobs": [[-1, -2], [-1, -1, -1]], "logprobs:initial": [[-2, -2], [-1, -3, -1]]}
    sampled = rollout([1, 0], lengths=[2, 3], columns=columns)
    chain = [{"kind": "kl_penalty", "beta": 0.1}, {"kind": "returns", "gamma": 0.5}]
    plain = advantages(chain, sampled)
    assert [tokens.tolist() for tokens in plain] == [near(-0.1 + 0.5, 1), near(-0.1, -0.2, 0)]
    flat = numpy.concatenate(plain)
    white = (flat - flat.mean()) / math.sqrt(flat.var(ddof=1) + 1e-8)
    assert numpy.concatenate(advantages([*chain, "whiten"], sampled)).tolist() == near(*white)


def test_reinforce_plus_plus_with_baseline():
    sampled = rollout([1, 0], lengths=[1, 3])
    flat = numpy.array([0.5, -0.5, -0.5, -0.5])
    white = (flat - flat.mean()) / flat.std(ddof=1)
    assert numpy.concatenate(advantages(["center", "whiten"], sampled)).tolist() == near(*white)


def test_whiten_by_answer_and_without_shift():
    sampled = rollout([1, 0], lengths=[1, 3])
    flat = numpy.array([0.5, -0.5]) / math.sqrt(0.5)
    per_token = advantages(["center", {"kind": "whiten", "over": "answers"}], sampled)
    assert [tokens.tolist() for tokens in per_token] == [near(flat[0]), near(*[flat[1]] * 3)]
    kept = advantages(["returns", {"kind": "whiten", "shift": False}], rollout([3, 1], lengths=[1, 1]))
    assert numpy.concatenate(kept).tolist() == near(2 + 1 / math.sqrt(2), 2 - 1 / math.sqrt(2))
    single = advantages(["returns", "whiten"], rollout([3], lengths=[1]))
    assert single[0].tolist() == [3]


def test_rloo_with_the_penalty_in_the_reward():
    """R_i - beta Σ_t (lp_old - lp_ref), then leave one out; by hand."""
    columns = {"old_logprobs": [[-1, -1], [-2, -1]], "logprobs:initial": [[-2, -2], [-1, -1]]}
    sampled = rollout([1, 0], columns=columns)
    chain = [{"kind": "kl_penalty", "beta": 0.1}, "leave_one_out"]
    assert firsts(chain, sampled) == near((1 - 0.2) - (0 + 0.1), (0 + 0.1) - (1 - 0.2))


def test_the_penalty_leaves_out_what_was_not_trained():
    sampled = rollout([1], lengths=[2], columns={"old_logprobs": [[-5, -1]], "logprobs:initial": [[-1, -1]]})
    sampled.trained[0][0] = False
    assert advantages(["kl_penalty", "returns"], sampled)[0].tolist() == [0, 1]


def test_normalise_then_sum():
    """By hand: each reward is normalised in its group, weighted, summed, and normalised over the rollout."""
    sampled = with_parts(
        rollout([2, 0], [5, 1]), {"small": [0.1, 0, 0.2, 0.2], "large": [0, 100, 300, 100], "large.x": [1, 2, 3, 4]}
    )

    def z(values):
        values = numpy.array(values)
        return (values - values.mean()) / (values.std(ddof=1) + 1e-4)

    small, large = numpy.concatenate([z([0.1, 0]), z([0.2, 0.2])]), numpy.concatenate([z([0, 100]), z([300, 100])])
    assert firsts("norm_then_sum", sampled) == near(*z(small + large))
    chain = [{"kind": "norm_then_sum", "weights": {"small": 2.0, "large": 0.0}}]
    assert firsts(chain, sampled) == near(*z(2 * small))
    with pytest.raises(RecipeError, match="no reward `other`"):
        firsts([{"kind": "norm_then_sum", "weights": {"other": 1}}], sampled)


def test_prefixes_credited_apart():
    """Three plain answers, one alone with its prefix of two tokens, two that share one of three."""
    sampled = rollout([1, 0, 0, 1, 1, 0], lengths=[2, 2, 2, 3, 5, 5], forced=[0, 0, 0, 2, 3, 3])
    third = 1 / 3
    wanted = [
        near(*[2 * third] * 2), near(-third, -third), near(-third, -third),
        near(2 * third, 2 * third, 0), near(third, third, third, 0.5, 0.5), near(*[-third / 2] * 3, -0.5, -0.5),
    ]  # fmt: skip
    assert [tokens.tolist() for tokens in advantages("split_prefix", sampled)] == wanted
    alone = advantages([{"kind": "split_prefix", "alone": "reward"}], sampled)
    assert alone[3].tolist() == near(2 * third, 2 * third, 1)
    assert [tokens.tolist() for tokens in advantages("split_prefix", rollout([1, 0], forced=[1, 2]))] == [[0, 0]] * 2


def test_prefixes_credited_as_the_second_variant_of_the_released_code_does():
    """The answers' scores are centred among those that began alike before the free ones' mean is taken off."""
    second = {"kind": "split_prefix", "prefix": "centred"}
    sampled = rollout([1, 0, 0, 1, 0, 0, 0, 1], lengths=[2] * 7 + [3], forced=[0] * 7 + [2])
    assert advantages([second], sampled)[-1].tolist() == near(-2 / 7, -2 / 7, 0)
    assert advantages("split_prefix", sampled)[-1].tolist() == near(5 / 7, 5 / 7, 0)
    two = rollout([1, 0, 1, 0], lengths=[2, 2, 3, 3], forced=[0, 0, 2, 2])
    assert [value.tolist() for value in advantages([second], two)[2:]] == [near(0, 0, 0.5), near(-0.5, -0.5, -0.5)]
    assert [value.tolist()[0] for value in advantages("split_prefix", two)[2:]] == near(0.25, -0.25)
    first = [{"kind": "split_prefix", "alone": "reward", "prefix": prefix} for prefix in ("reward", "centred")]
    first_form, other = (advantages([chain], sampled) for chain in first)
    assert [value.tolist() for value in first_form] == [value.tolist() for value in other]


ENTROPY = (0.1, 2, 0.3, 0.05, 1.5, 0.7, 0.2, 0.9, 1.1, 0.4)


def test_the_entropy_gate_keeps_the_most_uncertain_fifth():
    """The card's ten prefix tokens: only indices 1 and 4 keep their advantage; what was sampled is untouched."""
    columns = {"entropy": [[*ENTROPY, 0.0, 0.0], [0.0, 0.0]]}
    sampled = rollout([1, 0], lengths=[12, 2], forced=[10, 0], columns=columns)
    gated = advantages(["center", "entropy_gate"], sampled)
    assert gated[0].nonzero()[0].tolist() == [1, 4, 10, 11]
    assert gated[1].tolist() == [-0.5, -0.5]
    assert gated[0][[1, 4, 10, 11]].tolist() == [0.5] * 4


def test_the_gate_spans_the_whole_rollout_or_each_answer():
    columns = {"entropy": [[1, 2, 3, 4, 9], [5, 6, 7, 8, 0]]}
    sampled = rollout([1, 0], lengths=[5, 5], forced=[4, 4], columns=columns)
    half = {"kind": "entropy_gate", "drop": 0.5}
    assert [tokens.nonzero()[0].tolist() for tokens in advantages(["center", half], sampled)] == [[4], [0, 1, 2, 3, 4]]
    each = advantages(["center", {**half, "over": "answer"}], sampled)
    assert [tokens.nonzero()[0].tolist() for tokens in each] == [[2, 3, 4], [2, 3, 4]]
    high = advantages(["center", {**half, "first": "high"}], sampled)
    assert [tokens.nonzero()[0].tolist() for tokens in high] == [[0, 1, 2, 3, 4], [4]]


def test_an_answer_without_a_row_does_not_fill_the_gate():
    """Cut off and masked: its prefix has no entropy, and is not among the tokens that are dropped."""
    groups = rollout([1, 0], lengths=[4, 4], forced=[4, 4]).groups
    sampled = Rollout.of(groups, {"entropy": {"r0#0.0.1": numpy.array([0, 0, 1.0, 2, 3, 4])}})
    gated = advantages(["center", {"kind": "entropy_gate", "drop": 0.5}], sampled)
    assert gated[1].nonzero()[0].tolist() == [2, 3]


def test_the_limits_of_the_gate():
    """Nothing dropped is the plain advantage; everything dropped freezes the prefix; no prefix, no change."""
    columns = {"entropy": [[1, 2, 9], [5, 6, 0]]}
    sampled = rollout([1, 0], lengths=[3, 3], forced=[2, 0], columns=columns)
    plain = advantages("center", sampled)
    none, all_ = (advantages(["center", {"kind": "entropy_gate", "drop": d}], sampled) for d in (0, 1))
    assert all(numpy.array_equal(tokens, other) for tokens, other in zip(plain, none, strict=True))
    assert [tokens.nonzero()[0].tolist() for tokens in all_] == [[2], [0, 1, 2]]
    free = rollout([1, 0], lengths=[3, 3], columns=columns)
    assert numpy.array_equal(advantages(["center", "entropy_gate"], free), advantages("center", free))


def test_a_chain_in_a_senseless_order_is_refused():
    with pytest.raises(RecipeError, match="`group_norm` starts from rewards, and `center`"):
        advantages(["center", "group_norm"], rollout([1, 0]))
    with pytest.raises(RecipeError, match="`kl_penalty` returns rewards"):
        columns = {"old_logprobs": [[0, 0]] * 2, "logprobs:initial": [[0, 0]] * 2}
        advantages(["kl_penalty"], rollout([1, 0], columns=columns))
    with pytest.raises(RecipeError, match="`entropy_gate` changes advantages"):
        advantages(["entropy_gate", "center"], rollout([1, 0], columns={"entropy": [[0, 0]] * 2}))
    with pytest.raises(RecipeError, match="`gae` reads the column `values`"):
        advantages("gae", rollout([1, 0]))


def test_a_rollout_without_groups_has_no_advantages():
    assert advantages("center", rollout()) == []


def probe(name):
    columns = {
        "entropy": [[3, 1, 2], [0, 1, 2, 4], [7, 8], [1, 2]],
        "values": [[0.1, 0.5, 0.3], [0.2, 0.1, 0.4, 0.3], [0.3, 0.9], [0, 1]],
        "old_logprobs": [[-1, -2, -1], [-1, -1, -1, -3], [-2, -1], [0, 0]],
        "logprobs:initial": [[-2, -2, -1], [-1, -3, -1, -1], [-1, -1], [0, -1]],
    }
    sampled = rollout([3, 0.5], [1, 0], lengths=[3, 4, 2, 2], forced=[2, 3, 0, 0], columns=columns)
    sampled = with_parts(sampled, {"one": [1, 0, 1, 0], "two": [2, 0.5, 0, 0]})
    before = {"entropy_gate": ["center"], "whiten": ["returns"]}.get(name, [])
    behind = ["returns"] if name == "kl_penalty" else []
    return lambda part: numpy.concatenate(credit([*build_chain(before), part, *build_chain(behind)], sampled))


@pytest.mark.parametrize("name", [entry.name for entry in catalogue("advantage")])
def test_every_option_changes_some_advantage(name):
    part = load("advantage", name)
    run = probe(name)
    links = [part(**settings) for settings in part.SETTINGS]
    values = [run(link) for link in links]
    silent = set(part.model_fields)
    for i, link in enumerate(links):
        for j in range(i):
            differing = {option for option in silent if getattr(link, option) != getattr(links[j], option)}
            if len(differing) == 1 and not numpy.allclose(values[i], values[j], atol=1e-9):
                silent -= differing
    assert silent == set()
    assert build("advantage", name).kind == name


@pytest.mark.parametrize("name", [entry.name for entry in catalogue("advantage")])
def test_an_advantage_says_whether_it_compares_the_answers_of_a_group(name):
    link, alone = build("advantage", name), rollout([1.0], [0.0])
    names = ("values", "entropy", "old_logprobs", "logprobs:initial")
    alone.columns |= {column: [numpy.zeros(2) for _ in alone.members] for column in names}
    alone.parts |= {"one": alone.rewards}
    if link.COMPARES:
        with pytest.raises(RunError, match="compares the answers of a group"):
            link.compute(alone, alone.start_values())
    else:
        link.compute(alone, alone.start_values())


@pytest.mark.parametrize(
    "chain",
    [
        ["group_norm"],
        ["batch_norm"],
        ["center"],
        ["leave_one_out"],
        ["split_prefix"],
        ["norm_then_sum"],
        ["center", "whiten"],
        ["returns", "whiten"],
    ],
)
@pytest.mark.parametrize("reward, count", [(0.1, 3), (0.55, 6), (0.7, 7), (0.962, 4)])
def test_equal_rewards_are_credited_with_exactly_nothing(chain, reward, count):
    """Their mean is not always the reward itself, to the last bit."""
    equal = rollout([reward] * count, [reward] * count)
    equal = with_parts(equal, {"good": [reward] * 2 * count})
    assert [value.tolist() for value in advantages(chain, equal)] == [[0.0, 0.0]] * 2 * count
    if chain[-1] == "whiten":  # which sees no groups
        return
    beside = rollout([reward] * count, [1.0, 0.0, 0.3])
    beside = with_parts(beside, {"good": [*[reward] * count, 1.0, 0.0, 0.3]})
    per_token = [value.tolist() for value in advantages(chain, beside)]
    assert per_token[:count] == [[0.0, 0.0]] * count and all(any(value) for value in per_token[count:])


@pytest.mark.parametrize("chain", ["center", "group_norm", "batch_norm", "leave_one_out", "split_prefix"])
def test_rewards_that_differ_by_rounding_alone_are_equal(chain):
    sums = [0.1 + 0.2, 0.3, 0.3 + 1e-13, 0.15 + 0.15]
    assert len(set(sums)) > 1
    sampled = rollout(sums, [1.0, 0.0])
    assert firsts(chain, sampled)[:4] == [0.0] * 4 and firsts(chain, sampled)[4] > 0
    assert not sampled.groups[0].informative and sampled.groups[1].informative


def test_small_rewards_that_differ_by_more_than_rounding_are_not_equal():
    assert firsts("group_norm", rollout([1e-6, 2e-6]))[1] > 0
    assert rollout([1e-6, 2e-6]).groups[0].informative


def test_normalise_then_sum_takes_the_weights_of_the_recipe():
    """A negative weight turns the sign; an option of the link goes before the recipe."""
    sampled = with_parts(rollout([2, 0], [5, 1]), {"small": [0.1, 0, 0.2, 0.5], "large": [0, 100, 300, 100]})

    def credits(of_recipe, **options):
        return firsts([{"kind": "norm_then_sum", **options}], replace(sampled, weights=of_recipe))

    usual = credits({"small": 1.0, "large": 1.0})
    assert credits({}) == usual
    assert credits({"small": -1.0, "large": -1.0}) == near(*(-credit for credit in usual))
    assert credits({"small": 5.0, "large": 1.0}) == credits({}, weights={"small": 5.0}) != usual
    assert credits({"small": 5.0}, weights={"small": 1.0}) == usual


@pytest.mark.parametrize("first", ["kl_penalty", "whiten"])
def test_nothing_stands_before_a_link_that_reads_the_single_rewards(first):
    with pytest.raises(RecipeError, match=f"`{first}` before it would have no effect"):
        check_chain(build_chain([first, "norm_then_sum"]))
