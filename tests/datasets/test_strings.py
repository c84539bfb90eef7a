import random

import pytest
from pydantic import ValidationError

from luthier.datasets.strings import TASKS, Strings, solve


@pytest.mark.parametrize(
    ("task", "argument", "answer"),
    [
        ("copy", "dbz", "dbz"),
        ("reverse", "dbz", "zbd"),
        ("sort", "dbz", "bdz"),
        ("shift", "dbz", "eca"),
        ("upper", "dbz", "DBZ"),
    ],
)
def test_answers(task, argument: str, answer: str):
    assert solve(task, argument, random.Random(0)) == (argument, answer)


def test_compare_answers_with_the_earlier_of_two_different_strings():
    for seed in range(50):
        argument, answer = solve("compare", "dbzk", random.Random(seed))
        first, second = argument.split()
        assert first == "dbzk" and second != first and len(second) == 4
        assert answer == sorted((first, second))[0]


def test_count_counts_the_letter_it_names():
    for seed in range(50):
        argument, answer = solve("count", "dbzk", random.Random(seed))
        letter, text = argument.split(" in ")
        assert int(answer) == text.count(letter) >= 1


def test_options_bound_tasks_and_lengths():
    records = Strings(count=60, tasks=("sort", "copy"), shortest=4, longest=5).records()
    assert {record.fields["task"] for record in records} == {"sort", "copy"}
    assert {len(record.fields["completion"]) for record in records} == {4, 5}
    assert {record.fields["task"] for record in Strings(count=100).records()} == set(TASKS)


def test_an_impossible_range_is_refused():
    with pytest.raises(ValidationError, match="shortest"):
        Strings(shortest=9, longest=4)
    with pytest.raises(ValidationError, match="tasks is empty"):
        Strings(tasks=())
