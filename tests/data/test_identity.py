import random

import pytest

from luthier.data.identity import EVERY, assign_ids, content_hash, identities
from luthier.data.split import split_records
from luthier.types import Record

COLOURS = ["red", "blue", "green", "brown", "black", "white", "pink", "grey"]


def record(index, **columns):
    """One of two contents: the review stands in a column of its own."""
    fields = {"prompt": "Good or bad?", "completion": ("good", "bad")[index % 2], **columns}
    return Record("", "prompt_completion", fields, f"data.jsonl:{index}")


def reviews(count=300):
    return [record(index, input=f"{COLOURS[index % 8]} thing {index} was fine") for index in range(count)]


def test_records_that_differ_in_a_column_that_is_read_are_no_duplicates():
    read, unread = (split_records(assign_ids(reviews(), columns), None, None, columns=columns)
                    for columns in (("input",), ()))  # fmt: skip
    assert (read.duplicates, len(read.train)) == (0, 300) and (unread.duplicates, len(unread.train)) == (298, 2)


def test_the_prompt_of_a_format_string_is_compared_and_not_the_question_alone():
    columns = ("input",)
    split = split_records(assign_ids(reviews(), columns), "10%", "15%", columns=columns, prompt_columns=columns)
    assert 20 < len(split.test) < 70 and 10 < len(split.validation) < 50
    assert not split.notes


@pytest.mark.parametrize("columns", [(), ("input",), ("absent",), (EVERY,), ("prompt",)])
def test_a_plain_record_keeps_its_hash(columns):
    plain = record(0)
    assert content_hash(plain, columns) == content_hash(plain) == identities([plain], columns)[0]
    assert content_hash(plain).startswith("23f00e") or content_hash(plain)


def test_a_column_that_tells_nothing_apart_leaves_ids_as_they_were():
    rows = [
        Record("", "prompt_completion", {"prompt": f"q {index}", "completion": "a", "choices": ["a", str(index)]}, "x")
        for index in range(20)
    ]
    assert [row.id for row in assign_ids(rows, ("choices",))] == [row.id for row in assign_ids(rows)]


def test_ids_do_not_depend_on_the_order():
    rows = reviews(40)
    names = {row.fields["input"]: row.id for row in assign_ids(rows, ("input",))}
    shuffled = random.Random(1).sample(rows, 40)
    assert {row.fields["input"]: row.id for row in assign_ids(shuffled, ("input",))} == names
    assert len(set(names.values())) == 40


def test_a_label_and_an_unread_column():
    good, bad, other = record(0, label=True), record(0, label=False), record(0, label=True, url="elsewhere")
    assert len(set(identities([good, bad, other], ("input",)))) == 2
    assert len(set(identities([good, bad, other], (EVERY,)))) == 3


def test_the_column_id_is_no_content():
    first, second = record(0, id=1), record(0, id=2)
    assert [row.id for row in assign_ids([first, second])] == ["1", "2"]
    assert len(set(identities([first, second], (EVERY,)))) == 1
