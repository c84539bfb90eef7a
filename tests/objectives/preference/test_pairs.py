"""Pairs in the engine: rows find each other, one pair is one record, and who is given which rows."""

from types import SimpleNamespace

import numpy
import pytest
import torch

from luthier import parts
from luthier.conformance.base import apart
from luthier.conformance.tiny import tiny_labelled, tiny_model, tiny_pairs, tiny_rows
from luthier.conformance.training import trained, trainer
from luthier.data.batches import collate
from luthier.data.pairs import rows_of_record, without_rejected
from luthier.engine.assemble import Parts
from luthier.engine.budget import Budget
from luthier.engine.score import score, with_column
from luthier.engine.trainer import Batching
from luthier.errors import RecipeError
from luthier.modalities.language.workspace import training_rows
from luthier.models.policy import TokenPolicy
from luthier.objectives.preference.base import PairObjective, pair_view
from luthier.objectives.sum import build_objective
from luthier.types import Record, Row, Stream
from luthier.update import Update

DPO = parts.build("objective", "dpo")
SFT = parts.build("objective", "sft")
ADAMW = parts.build("optimizer", {"kind": "adamw", "lr": 2e-3})


def prepared(rows, **fields):
    return SimpleNamespace(
        train=rows,
        records={
            row.record: Record(
                row.record, "preference" if row.record != row.id else "prompt_completion", fields, "d.jsonl:3"
            )
            for row in rows
        },
    )


def with_reference(rows, dtype=torch.float32):
    """The rows with the log-probabilities of the tiny model before training."""
    return with_column(
        rows, "logprobs:initial", score(TokenPolicy(tiny_model(dtype)), rows, ["logprobs"], 10_000)["logprobs"]
    )


def learned_rows(objective, data):
    return training_rows(Parts(objective, (parts.build("tuner", "full"),), None, None), data)


def test_the_order_of_the_rows_does_not_matter():
    pairs = with_reference(tiny_pairs(), torch.float64)
    policy = TokenPolicy(tiny_model(seed=1))

    def by_pair(rows):
        batch = collate(rows)
        view = pair_view(policy, batch, Update(1, 0))
        names = [row.record for row in rows if row.streams["preferred"].values == 1]
        margin = view.chosen.log_ratio() - 2 * view.rejected.log_ratio()
        return dict(zip(names, margin.tolist(), strict=True))

    wanted = by_pair(pairs)
    mixed = [pairs[i] for i in numpy.random.default_rng(0).permutation(len(pairs))]
    for permuted in (by_pair(pairs[::-1]), by_pair(mixed)):
        assert permuted == pytest.approx(wanted)


def test_a_pair_is_one_record_of_an_update():
    pairs = tiny_pairs()
    batch = collate(pairs)
    units = DPO.units(batch)
    assert units["records"] == 8 and units["targets"] == sum(row.targets for row in pairs)
    assert units["chosen_targets"] == sum(row.targets for row in without_rejected(pairs))
    events = []
    run = trainer(
        DPO,
        parts.build("tuner", "full"),
        tiny_pairs(7),
        Batching(3, 40),
        observe=events.append,
        budget=Budget("epochs", 2),
    )
    run.train()
    assert [event["records"] for event in events] == [3, 6, 9, 12, 14]
    assert run.position.tokens == 2 * sum(len(row) for row in tiny_pairs(7))


@pytest.mark.parametrize("layout", ["padded", "packed", "shared"])
def test_a_pair_that_is_drawn_twice_counts_twice(layout):
    whole, twice = (
        trained(DPO, parts.build("tuner", "full"), Batching(records, 10_000, layout), rows=tiny_pairs())
        for records in (8, 16)
    )
    assert apart(whole, twice) < 1e-6  # the mean over 8 pairs is the mean over each of them twice


def test_objectives_without_pairs_learn_the_chosen_answers():
    rows = learned_rows(SFT, prepared(tiny_pairs()))
    chosen = [row for row in tiny_pairs() if row.streams["preferred"].values == 1]
    assert [row.ids.tolist() for row in rows] == [row.ids.tolist() for row in chosen]
    assert [row.id for row in rows] == [row.record for row in chosen] and not any(row.record != row.id for row in rows)
    collate([*rows, *tiny_rows()])  # beside records that never were pairs
    assert len(learned_rows(DPO, prepared(tiny_pairs()))) == 16


def test_data_without_pairs_are_refused_in_words():
    with pytest.raises(RecipeError, match=r"`dpo` learns from pairs .* record record-0 \(d\.jsonl:3\) has one answer"):
        learned_rows(DPO, prepared([*tiny_pairs(), *tiny_rows(1)]))


def test_labelled_answers_are_for_those_who_read_labels():
    rows, kto = tiny_labelled(), parts.build("objective", "kto")
    assert len(learned_rows(kto, prepared(rows))) == 8 and len(learned_rows(kto, prepared(tiny_pairs()))) == 16
    learned = learned_rows(SFT, prepared(rows))
    assert [row.id for row in learned] == [f"record-{index}" for index in (0, 2, 4, 6)]
    assert not any("preferred" in row.streams for row in learned)
    with pytest.raises(RecipeError, match=r"`dpo` learns from pairs .* record record-0 \(d\.jsonl:3\) has one answer"):
        learned_rows(DPO, prepared(rows))
    with pytest.raises(
        RecipeError, match=r"`kto` learns from answers that are labelled .* record record-0 .* no `label`"
    ):
        learned_rows(kto, prepared([*tiny_rows(1), *rows]))
    with pytest.raises(RecipeError, match=r"the `label` of record record-0 .* is 'True'.*\n.*Cells of CSV files"):
        learned_rows(kto, prepared([*tiny_rows(1), *rows], label="True"))
    with pytest.raises(
        RecipeError, match=r"`sft` learns from good answers, and every training record has `label: false`"
    ):
        learned_rows(SFT, prepared(rows[1::2]))


def test_a_sum_with_an_objective_that_would_learn_rejected_answers_is_refused():
    mixed = build_objective([{"objective": {"kind": name}, "coefficient": 1.0} for name in ("dpo", "sft")])
    with pytest.raises(RecipeError, match="`sft` would learn both"):
        learned_rows(mixed, prepared(tiny_pairs()))
    two = [
        {"objective": {"kind": "dpo"}, "coefficient": 1.0},
        {"objective": {"kind": "dpo", "loss": "hinge"}, "coefficient": 1.0},
    ]
    assert len(learned_rows(build_objective(two), prepared(tiny_pairs()))) == 16


class Sum(PairObjective):
    def pair_loss(self, view):
        return view.chosen.logprob.sum()


def test_a_sum_instead_of_one_value_per_pair_is_refused():
    with pytest.raises(RecipeError, match="expected one value per pair"):
        trainer(Sum(), parts.build("tuner", "full"), tiny_pairs(), Batching(8, 10_000)).train()


def comparisons(count, seed):
    """Of a prompt's first letter a: the chosen answer goes on a+1, a+2, ...; the rejected one is random."""
    draw = numpy.random.default_rng(seed)
    rows = []
    for index in range(count):
        prompt = draw.integers(0, 50, 3)
        good = prompt[0] + 1 + numpy.arange(draw.integers(3, 6))
        bad = draw.integers(0, 60, draw.integers(3, 6))
        sides = [
            Row(
                "",
                numpy.concatenate([prompt, end]).astype(numpy.int32),
                {"weights": Stream(numpy.repeat(numpy.float32([0, 1]), [3, len(end)]), "token")},
            )
            for end in (good, bad)
        ]
        rows += rows_of_record(f"{seed}-{index}", sides)
    return rows


def accuracy(policy, rows):
    """Share of pairs whose implicit reward prefers the chosen answer, ties half."""
    batch = collate(rows)
    with torch.no_grad():
        view = pair_view(policy, batch, Update(1, 0))
        margin = view.chosen.log_ratio() - view.rejected.log_ratio()
    return float(((margin > 1e-4).float() + 0.5 * (margin.abs() <= 1e-4).float()).mean())


def test_dpo_learns_what_is_preferred():
    train, test = with_reference(comparisons(200, 0)), with_reference(comparisons(100, 1))
    events = []
    run = trainer(
        DPO,
        parts.build("tuner", "full"),
        train,
        Batching(20, 2000),
        dtype=torch.float32,
        disturb=False,
        optimizer=ADAMW,
        budget=Budget("epochs", 4),
        observe=events.append,
    )
    assert accuracy(run.policy, train) == accuracy(run.policy, test) == 0.5
    run.train()
    assert events[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert accuracy(run.policy, train) > 0.9 and accuracy(run.policy, test) > 0.9
