"""Subsets: grape's choice by likelihood, s2l's even share of loss curves, their oracles and limits."""

import math
from dataclasses import replace

import numpy
import pytest
import torch

from luthier import parts
from luthier.conformance.tiny import tiny_model, tiny_rows
from luthier.conformance.training import trainer
from luthier.data.batches import collate
from luthier.engine.score import score
from luthier.engine.trainer import Batching
from luthier.errors import DataError
from luthier.models.policy import TokenPolicy
from luthier.sampling.scoring import sequence_logprobs
from luthier.select._clusters import even_shares, k_means
from luthier.types import Candidate, Record, Row, Stream


def candidate(prompt, answer, name, **fields):
    ids = numpy.array([*prompt, *answer], dtype=numpy.int32)
    weights = numpy.array([0.0] * len(prompt) + [1.0] * len(answer), dtype=numpy.float32)
    record = Record(fields.pop("record", name), "prompt_completion", {"prompt": "", "completion": "", **fields}, name)
    return Candidate(record, Row(name, ids, {"weights": Stream(weights, "token")}), "", "data")


def with_chances(*pairs):
    """Candidates of one prompt with so many tokens of such a chance each, and their column."""
    found, column = [], {}
    for index, (tokens, chance) in enumerate(pairs):
        one = candidate([1, 2], [3 + index] * tokens, f"r{index}")
        found.append(one)
        column[one.row.id] = numpy.array([0.0, 0.0] + [math.log(chance)] * tokens)
    return found, {"logprobs": column}


def grape(**options):
    return parts.build("subset", {"kind": "grape", **options})


def test_the_mean_prefers_the_likelier_tokens_and_the_sum_the_shorter_answer():
    candidates, columns = with_chances((2, 0.5), (4, 0.6))
    sums = [sum(columns["logprobs"][name]) for name in ("r0", "r1")]
    assert abs(sums[0] + 1.386) < 1e-3 and abs(sums[1] + 2.043) < 1e-3
    assert abs(sums[0] / 2 + 0.693) < 1e-3 and abs(sums[1] / 4 + 0.511) < 1e-3
    assert grape().choose(candidates, columns, 0) == [1]
    assert grape(reduce="sum").choose(candidates, columns, 0) == [0]


def test_one_candidate_stays_and_a_worse_one_changes_nothing():
    candidates, columns = with_chances((3, 0.4))
    assert grape().choose(candidates, columns, 0) == [0]
    candidates, columns = with_chances((3, 0.4), (3, 0.1))
    assert grape().choose(candidates, columns, 0) == [0]
    assert grape(top=2).choose(candidates, columns, 0) == [0, 1]
    assert grape(by="unlikeliest").choose(candidates, columns, 0) == [1]


def test_a_model_that_knows_nothing_scores_minus_log_v_and_order_decides():
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    candidates = [candidate([1, 2], [5, 6, 7][:size], f"r{size}") for size in (2, 3, 1)]
    logprobs = score(TokenPolicy(model), [one.row for one in candidates], ["logprobs"], 1000)
    for one in candidates:
        values = logprobs["logprobs"][one.row.id]
        assert abs(values.sum() / one.row.targets + math.log(61)) < 1e-6
    assert grape().choose(candidates, logprobs, 0) == [0]
    assert grape().choose(candidates[::-1], logprobs, 0) == [0]


def test_the_end_of_an_answer_can_be_left_out():
    candidates, columns = with_chances((2, 0.5), (2, 0.4))
    columns["logprobs"]["r0"][-1] = math.log(0.01)  # an unlikely end
    assert grape().choose(candidates, columns, 0) == [1]
    assert grape(include_eos=False).choose(candidates, columns, 0) == [0]


def test_prompts_are_told_apart_by_tokens_or_by_record_and_copies_count_once():
    candidates, columns = with_chances((2, 0.5), (2, 0.4))
    other = candidate([9, 9], [4, 4], "other")
    copy = replace(candidates[0], row=replace(candidates[0].row, id="copy", record=""))
    columns["logprobs"] |= {"other": numpy.full(4, -9.0), "copy": columns["logprobs"]["r0"]}
    assert grape().choose([*candidates, other], columns, 0) == [0, 2]
    assert grape(group_by="record").choose([*candidates, other], columns, 0) == [0, 1, 2]
    assert grape(top=2).choose([candidates[0], copy, candidates[1]], columns, 0) == [0, 2]


def test_controls_choose_by_length_and_by_lot():
    candidates, columns = with_chances((2, 0.9), (5, 0.1), (3, 0.5))
    assert grape(by="longest").choose(candidates, columns, 0) == [1]
    drawn = {grape(by="random").choose(candidates, columns, seed)[0] for seed in range(30)}
    assert drawn == {0, 1, 2}


def test_the_score_is_minus_the_loss_of_the_record_alone_whatever_the_padding():
    """The engine's column, the shared scorer and the trainer's own loss agree; batch and side change nothing."""
    row, model = tiny_rows(1)[0], tiny_model()
    row = replace(row, streams={"weights": Stream((row.streams["weights"].values > 0).astype("float32"), "token")})
    column = score(TokenPolicy(model), [row], ["logprobs"], 1000)["logprobs"][row.id]
    mean = column.sum() / row.targets
    total, count = sequence_logprobs(model, [row])[0]
    assert count == row.targets and abs(total / count - mean) < 1e-9
    events = []
    sft, full = parts.build("objective", "sft"), parts.build("tuner", "full")
    trainer(sft, full, [row], Batching(1, 100), disturb=False, observe=events.append).train()
    assert abs(events[0]["loss"] + mean) < 1e-6
    many = score(TokenPolicy(model), [row, *tiny_rows(8)[1:]], ["logprobs"], 1000)["logprobs"][row.id]
    assert numpy.abs(many - column).max() < 1e-9
    loss = parts.build("selector", "max_loss")
    for side in ("left", "right"):
        with torch.no_grad():
            batch = collate([row, *tiny_rows(8)[1:]], side=side)
            found = loss.features(TokenPolicy(model), batch, None)["loss"]
        assert abs(float(found[0]) + mean) < 1e-9


def test_the_model_decides_whose_answers_are_kept():
    """Adapted to answers of one style, a model picks that style; adapted to the other, the other."""
    draw = numpy.random.default_rng(0)
    prompts = [draw.integers(0, 20, 3).tolist() for _ in range(24)]
    styles = {"terse": lambda p: [30 + p[0], 60], "wordy": lambda p: [50, 51, 52, 30 + p[0], 53, 60]}
    pool = [candidate(p, f(p), f"{s}-{i}") for i, p in enumerate(prompts) for s, f in styles.items()]
    for style in styles:
        rows = [one.row for one in pool if one.row.id.startswith(style)][:24]
        run = trainer(
            parts.build("objective", "sft"), parts.build("tuner", "full"), rows, Batching(8, 1000),
            optimizer=parts.build("optimizer", {"kind": "adamw", "lr": 1e-2}), dtype=torch.float32,
            budget=parts_budget(12),
        )  # fmt: skip
        run.train()
        columns = score(run.policy, [one.row for one in pool], ["logprobs"], 1000)
        kept = [pool[place].row.id for place in grape().choose(pool, columns, 0)]
        assert len(kept) == 24
        assert sum(name.startswith(style) for name in kept) >= 0.95 * len(kept)


def parts_budget(updates):
    from luthier.engine.budget import Budget

    return Budget("updates", updates)


def s2l(**options):
    return parts.build("subset", {"kind": "s2l", **options})


def test_even_shares_of_the_card():
    sizes = [1, 2, 3, 10, 20]
    assert even_shares(sizes, 12, smallest=3) == [0, 0, 3, 4, 5]
    assert even_shares(sizes, 12) == [1, 2, 3, 3, 3]
    assert even_shares(sizes, 100) == sizes
    assert even_shares([20, 1, 10, 2, 3], 12) == [3, 1, 3, 2, 3]
    assert even_shares([1, 1, 4], 6, smallest=3) == [1, 1, 4]  # small ones fill up what is missing
    for budget in range(37):
        assert sum(even_shares(sizes, budget, smallest=3)) == min(budget, 36)


def curves(rows, seed=0):
    draw = numpy.random.default_rng(seed)
    return numpy.exp(-draw.random((rows, 1)) * numpy.arange(6)) + 0.01 * draw.random((rows, 6))


def same_partition(one, other):
    return (
        len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one.tolist())) == len(set(other.tolist()))
    )


def test_clusters_do_not_depend_on_the_order_of_the_moments():
    points = curves(80)
    one, inertia = k_means(points, 5, 20, 0)
    other, again = k_means(points[:, [3, 0, 5, 1, 4, 2]], 5, 20, 0)
    assert same_partition(one, other) and abs(inertia - again) < 1e-9


def test_equal_records_are_in_one_cluster_and_groups_far_apart_are_found():
    points = numpy.concatenate([curves(30), 5 + curves(10), 9 + curves(5)])
    labels, inertia = k_means(numpy.concatenate([points, points[:1]]), 3, 20, 0)
    assert labels[0] == labels[-1]
    assert same_partition(labels[:45], numpy.repeat([0, 1, 2], [30, 10, 5]))
    means = [piece.mean(0) for piece in (points[:30], points[30:40], points[40:])]
    wanted = sum(
        ((points[labels[:45] == labels[start]] - mean) ** 2).sum()
        for start, mean in zip((0, 30, 40), means, strict=True)
    )
    assert abs(inertia / wanted - 1) < 0.05


def choose(part, points, seed=0, fields=None):
    candidates = [
        candidate([1], [2], f"r{index:04}", **(fields[index] if fields else {})) for index in range(len(points))
    ]
    column = {one.row.id: values for one, values in zip(candidates, points, strict=True)}
    return part.choose(candidates, {"trajectory": column}, seed)


def test_a_share_of_all_is_all_and_one_cluster_is_a_draw_by_lot():
    points = curves(40)
    assert choose(s2l(share=1.0, clusters=4), points) == list(range(40))
    drawn = numpy.zeros(40)
    for seed in range(400):
        drawn[choose(s2l(share=0.25, clusters=1), points, seed)] += 1
    assert drawn.sum() == 4000 and numpy.abs(drawn / 400 - 0.25).max() < 0.1


def test_opposite_features_with_one_loss_share_a_cluster():
    """f = w·x with squared loss: (x, y) and (-x, -y) have the same loss at every w."""
    draw = numpy.random.default_rng(0)
    x, y = draw.normal(size=(40, 6)), draw.normal(size=40)
    weights = draw.normal(size=(8, 6))
    both_x, both_y = numpy.concatenate([x, -x]), numpy.concatenate([y, -y])
    table = ((both_x @ weights.T) - both_y[:, None]) ** 2
    labels, _ = k_means(table, 10, 20, 0)
    assert (labels[:40] == labels[40:]).all()
    features, _ = k_means(both_x, 10, 20, 0)
    assert (features[:40] != features[40:]).mean() > 0.9  # what clustering of features would do


def test_the_order_of_candidates_changes_nothing_and_nan_counts_as_zero():
    points = curves(60)
    points[3] = numpy.nan
    candidates = [candidate([1], [2], f"r{index:04}") for index in range(60)]
    column = {"trajectory": {one.row.id: values for one, values in zip(candidates, points, strict=True)}}
    part = s2l(clusters=4, share=0.2)
    one = {candidates[place].row.id for place in part.choose(candidates, column, 0)}
    turned = candidates[::-1]
    assert one == {turned[place].row.id for place in part.choose(turned, column, 0)}
    assert len(one) == 12


def test_strata_share_the_budget_and_a_missing_trajectory_is_named():
    points = curves(60)
    fields = [{"source": "small" if index < 6 else "large"} for index in range(60)]
    kept = choose(s2l(clusters=4, share=0.2, stratify_by="source"), points, fields=fields)
    assert sum(place < 6 for place in kept) == 6 and len(kept) == 12
    with pytest.raises(DataError, match="1 records have no trajectory, such as r0001"):
        s2l().choose([candidate([1], [2], f"r{i:04}") for i in range(2)], {"trajectory": {"r0000": points[0]}}, 0)


@pytest.mark.parametrize("name", [entry.name for entry in parts.catalogue("subset") if entry.name in ("grape", "s2l")])
def test_every_option_changes_something(name):
    part = parts.load("subset", name)
    draw = numpy.random.default_rng(0)
    lengths = draw.integers(2, 6, 160)
    rows = [
        candidate([index // 6, 1], draw.integers(3, 60, size).tolist(), f"r{index:03}", record=f"p{index // 2}",
                  source=f"s{index // 40}")
        for index, size in enumerate(lengths)
    ]  # fmt: skip
    sizes = {one.row.id: len(one.row) for one in rows}
    losses = 3 * draw.random((160, 5))
    losses[7] += 50  # a cluster of its own
    columns = {
        "logprobs": {name: -3 * draw.random(size) for name, size in sizes.items()},
        "trajectory": {one.row.id: values for one, values in zip(rows, losses, strict=True)},
    }
    chosen = [tuple(part(**options).choose(rows, columns, 0)) for options in part.SETTINGS]
    silent = set(part.model_fields)
    made = [part(**options) for options in part.SETTINGS]
    for i, one in enumerate(made):
        for j in range(i):
            differing = {option for option in part.model_fields if getattr(one, option) != getattr(made[j], option)}
            if len(differing) == 1 and chosen[i] != chosen[j]:
                silent -= differing
    assert not silent, (silent, chosen)


def test_rare_kinds_of_records_are_kept_more_often_than_by_lot():
    """90 % easy, 8 % medium, 2 % rare rules; a small network's losses over its training as trajectories."""
    shares = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        kind = torch.cat([torch.zeros(1350), torch.ones(120), torch.full((30,), 2.0)]).long()
        x = torch.randn(1500, 24, generator=generator)
        rules = torch.randn(3, 24, generator=generator)
        easy, medium = x @ rules[0] > 0, (x @ rules[0] > 0) ^ (x @ rules[1] > 0)
        y = torch.where(kind == 0, easy, torch.where(kind == 1, medium, x @ rules[2] > 0)).long()
        x[:, :3] += 2.0 * torch.nn.functional.one_hot(kind, 3)
        first = (torch.randn(24, 16, generator=generator) / 5).requires_grad_()
        second = (torch.randn(16, 2, generator=generator) / 4).requires_grad_()
        adam = torch.optim.Adam([first, second], lr=1e-2)
        table = []
        for step in range(300):
            at = torch.randint(0, 1500, (64,), generator=generator)
            loss = torch.nn.functional.cross_entropy(torch.relu(x[at] @ first) @ second, y[at])
            adam.zero_grad()
            loss.backward()
            adam.step()
            if step % 30 == 29:
                with torch.no_grad():
                    logits = torch.relu(x @ first) @ second
                    table.append(torch.nn.functional.cross_entropy(logits, y, reduction="none"))
        kept = choose(s2l(clusters=50, share=0.1), torch.stack(table, 1).double().numpy(), seed)
        shares.append(float((kind[kept] > 0).float().mean()))
    assert min(shares) > 1.4 * 0.1, shares
