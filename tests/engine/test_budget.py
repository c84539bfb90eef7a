"""Budgets in every unit end exactly where they say."""

import pytest

from luthier.conformance.tiny import tiny_pairs, tiny_rows
from luthier.data.batches import Ordered
from luthier.engine.budget import Budget, Position
from luthier.errors import RunError

ROWS = tiny_rows(10)
TOKENS = sum(len(row) for row in ROWS)


def walk(budget, records=4, rows=ROWS):
    ordered, position, sizes = Ordered(rows, 0), Position(), []
    while rows_by_record := budget.draw(ordered, position, records):
        position.updates += 1
        position.records += len(rows_by_record)
        position.tokens += sum(len(row) for record_rows in rows_by_record for row in record_rows)
        position.seconds += 1.0
        sizes.append(len(rows_by_record))
    return sizes, position, budget.spent(position, len(ordered))


@pytest.mark.parametrize(
    "budget, sizes",
    [
        (Budget("epochs", 2), [4, 4, 4, 4, 4]),
        (Budget("epochs", 0.5), [4, 1]),
        (Budget("records", 7), [4, 3]),
        (Budget("updates", 3), [4, 4, 4]),
        (Budget("seconds", 2), [4, 4]),
    ],
)
def test_ends_where_it_says(budget, sizes):
    assert walk(budget)[0] == sizes
    assert walk(budget)[2] == 1.0


def test_tokens_end_with_the_record_that_reaches_them():
    sizes, position, spent = walk(Budget("tokens", TOKENS + 5))
    assert position.tokens >= TOKENS + 5 > position.tokens - max(len(row) for row in ROWS)
    assert sum(sizes) == 11 and spent == 1.0


def test_a_pair_is_one_record_with_the_tokens_of_both_rows():
    pairs = tiny_pairs(10)
    assert walk(Budget("epochs", 1), rows=pairs)[0] == [4, 4, 2]
    tokens = sum(len(row) for row in pairs)
    sizes, position, spent = walk(Budget("tokens", tokens), rows=pairs)
    assert sum(sizes) == 10 and position.tokens == tokens and spent == 1.0
    assert Budget("tokens", tokens).updates(Ordered(pairs, 0), Position(), 5) == 2


def test_updates_left():
    ordered = Ordered(ROWS, 0)
    assert Budget("epochs", 2).updates(ordered, Position(), 4) == 5
    assert Budget("records", 7).updates(ordered, Position(records=4), 4) == 1
    assert Budget("updates", 3).updates(ordered, Position(updates=1), 4) == 2
    assert Budget("seconds", 3).updates(ordered, Position(), 4) is None
    assert Budget("tokens", TOKENS).updates(ordered, Position(), 5) in (2, 3)


def test_only_seconds_cannot_be_repeated():
    assert not Budget("seconds", 3).repeatable and Budget("tokens", 3).repeatable


def test_no_records():
    with pytest.raises(RunError, match="no record"):
        Budget("epochs", 1).draw(Ordered([], 0), Position(), 4)


@pytest.mark.parametrize(
    "budget, epochs",
    [
        (Budget("epochs", 2), 2),
        (Budget("epochs", 2, kept=0.5), 1),
        (Budget("records", 5), 0.5),
        (Budget("updates", 5), 2),
        (Budget("tokens", 3 * TOKENS), 3),
        (Budget("tokens", 3 * TOKENS, kept=0.5), 3),
        (Budget("seconds", 60), None),
    ],
)
def test_how_often_a_row_is_trained_on(budget, epochs):
    assert budget.epochs(ROWS, 4) == epochs


def test_both_rows_of_a_pair_are_trained_on_together():
    pairs = tiny_pairs(10)
    assert Budget("updates", 5).epochs(pairs, 4) == 2 and Budget("tokens", 7).epochs(pairs, 4) < 1


def test_records_are_spent_as_their_updates_are_done():
    """Four updates on eight records: a quarter of them is spent with each, also where ten make the epoch."""
    drawn = [Position(records=8, unspent_records=8 * left / 4) for left in (3, 2, 1, 0)]
    assert [Budget("records", 8).spent(position, 10) for position in drawn] == [0.25, 0.5, 0.75, 1.0]
    assert [Budget("epochs", 1).spent(position, 10) for position in drawn] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    # What decides which records come next is what was drawn.
    assert Budget("records", 8).draw(Ordered(ROWS, 0), drawn[0], 4) == []


def test_skipped_tokens_end_a_budget_of_tokens():
    position = Position(tokens=60, skipped_tokens=40)
    assert Budget("tokens", 200).spent(position, 10) == 0.5
    assert Budget("tokens", 100).draw(Ordered(ROWS, 0), position, 4) == []
    assert Budget("tokens", 100).updates(Ordered(ROWS, 0), position, 4) == 0
