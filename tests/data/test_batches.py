"""Order, micro-batches and layouts."""

from collections import Counter

import numpy
import pytest
import torch

from luthier.conformance.tiny import tiny_pairs, tiny_rows
from luthier.data.batches import (
    Ordered,
    collate,
    data_order,
    group_by_record,
    micro_batches,
    mismatched,
    positions,
    prompt_length,
)
from luthier.types import Row, Stream

ROWS = tiny_rows(20)


def test_order_is_keyed_by_seed_epoch_and_record():
    names = [row.id for row in ROWS]
    first = data_order(names, 0, 0)
    assert sorted(first) == list(range(20)) and first == data_order(names, 0, 0)
    assert first != data_order(names, 1, 0) and first != data_order(names, 0, 1)
    without = data_order(names[:-1], 0, 0)
    assert [names[i] for i in first if i != 19] == [names[i] for i in without]


def test_every_epoch_has_every_record_once_and_any_position_can_be_reached():
    ordered = Ordered(ROWS, 3)
    walked = [ordered.at(i)[0].record for i in range(60)]
    assert all(Counter(walked[e * 20 : e * 20 + 20]) == Counter(row.id for row in ROWS) for e in range(3))
    assert Ordered(ROWS, 3).at(47)[0].record == walked[47]


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("tokens", [1, 30, 64, 10_000])
def test_micro_batches_hold_every_row_once_and_keep_the_limit(layout, tokens):
    cut = micro_batches(ROWS, tokens, layout)
    assert Counter(row.id for micro in cut for row in micro) == Counter(row.id for row in ROWS)
    for micro in cut:
        size = sum(map(len, micro)) if layout == "packed" else len(micro) * max(map(len, micro))
        assert size <= tokens or len(micro) == 1


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("tokens", [1, 40, 64, 10_000])
def test_the_rows_of_a_pair_are_never_separated(layout, tokens):
    pairs = tiny_pairs(20)
    whole = {record_rows[0].record: 2 for record_rows in group_by_record(pairs)}
    cut = micro_batches(pairs, tokens, layout)
    assert len(cut) == 1 if tokens == 10_000 else len(cut) > 1
    counts = Counter()
    for micro in cut:
        inside = Counter(row.record for row in micro)
        assert set(inside.values()) == {2}
        assert positions(micro, layout) <= tokens or len(inside) == 1
        counts += inside
    assert counts == whole
    assert cut == micro_batches(pairs[::-1], tokens, layout)


def test_pairs_are_drawn_whole_in_the_order_of_their_records():
    pairs = tiny_pairs(20)
    ordered = Ordered(pairs, 3)
    drawn = [ordered.at(i) for i in range(20)]
    assert len(ordered) == 20 and all(
        [row.record for row in record_rows] == [record_rows[0].record] * 2 for record_rows in drawn
    )
    names = [f"record-{i}" for i in range(20)]
    assert [record_rows[0].record for record_rows in drawn] == [names[i] for i in data_order(names, 3, 0)]
    batch = collate(drawn[0], "packed")
    assert batch.records == (drawn[0][0].record,) * 2 and batch.examples == tuple(row.id for row in drawn[0])


def test_the_cut_does_not_depend_on_the_order_drawn():
    forwards = [[row.id for row in micro] for micro in micro_batches(ROWS, 64, "padded")]
    assert forwards == [[row.id for row in micro] for micro in micro_batches(ROWS[::-1], 64, "padded")]


@pytest.mark.parametrize("layout, side", [("padded", "right"), ("padded", "left"), ("packed", "right")])
def test_a_batch_gives_its_rows_back(layout, side):
    batch = collate(ROWS, layout, pad_id=60, side=side)
    assert (batch.attention_mask is not None) == (side == "left")
    for index, row in enumerate(ROWS):
        at = batch.example_of == index
        assert batch.ids[at].tolist() == row.ids.tolist()
        assert batch.position_of[at].tolist() == list(range(len(row)))
        assert batch.weights[at].tolist() == row.streams["weights"].values.tolist()
    padding = batch.example_of < 0
    assert not batch.weights[padding].any() and (batch.ids[padding] == 60).all()
    assert len(batch.targets()[0]) == sum(row.targets for row in ROWS)


def test_the_first_token_of_a_record_is_never_a_target():
    for row in ROWS[:3]:
        row.streams["weights"].values[0] = 1.0
    batch = collate(ROWS[:3], "packed")
    assert (batch.position_of[batch.targets()] > 0).all()
    assert len(batch.targets()[0]) == sum(row.targets for row in ROWS[:3])


def test_records_without_tokens_are_stacked():
    nothing = numpy.zeros(0, dtype=numpy.int32)
    images = numpy.arange(12, dtype=numpy.float64).reshape(2, 2, 3)
    rows = [
        Row(f"{i}", nothing, {"image": Stream(images[i], "row"), "label": Stream(numpy.int64(i), "row")})
        for i in range(2)
    ]
    batch = collate(rows)
    assert batch.ids.shape == (2, 0) and batch.examples == ("0", "1")
    assert torch.equal(batch.streams["image"].values, torch.from_numpy(images))
    assert batch.streams["label"].values.tolist() == [0, 1]
    assert [len(cut) for cut in micro_batches(rows, 1, "padded")] == [1, 1]


def split_at_answer(row):
    first = prompt_length(row)
    return row.ids[:first].tolist(), row.ids[first:].tolist()


def test_mismatched_answers_stand_once_each_behind_a_prompt_of_others():
    rows = [*tiny_pairs(), *ROWS]
    longest = max(map(len, rows))
    rows_by_id = mismatched(rows, "0/1")
    prompts = [split_at_answer(row)[0] for row in rows]
    assert list(rows_by_id) == [row.id for row in rows]
    for row in rows:
        other = rows_by_id[row.id]
        (prompt, answer), at = split_at_answer(row), prompt_length(other)
        assert other.ids[:at].tolist() in prompts and other.ids[:at].tolist() != prompt
        assert other.ids[at:].tolist() == answer[: longest - at] and len(other) <= longest and other.record == other.id
        weights = row.streams["weights"].values[len(prompt) :][: longest - at]
        assert other.streams["weights"].values.tolist() == [0] * at + weights.tolist()
    behind = {split_at_answer(row_behind)[0].__repr__() for row_behind in rows_by_id.values()}
    assert len(behind) == len({repr(prompt) for prompt in prompts})  # every prompt has answers of one other


def test_mismatching_knows_prompts_and_a_key_and_nothing_of_the_order():
    def ids(rows_by_id):
        return {name: row.ids.tolist() for name, row in rows_by_id.items()}

    whole = ids(mismatched(ROWS, "0/1"))
    assert ids(mismatched([*ROWS[::-1], *ROWS[:3]], "0/1")) == whole != ids(mismatched(ROWS, "0/2"))
    assert mismatched(tiny_pairs(1), "0/1") == {} == mismatched([], "0/1")


def test_a_batch_that_moves_takes_its_targets_along():
    """To look for them on a GPU would be to wait for it."""
    batch = collate(ROWS[:4])
    moved = batch.to("meta")
    assert all(indices.device.type == "meta" and len(indices) == len(batch.targets()[0]) for indices in moved.targets())
    again = batch.to("cpu")
    assert all(torch.equal(indices, other) for indices, other in zip(again.targets(), batch.targets(), strict=True))
