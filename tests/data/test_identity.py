import random

import pytest

from luthier.data.identity import assign_ids, content_hash, identities
from luthier.data.split import split_records
from luthier.parts import catalogue
from luthier.recipe import load_recipe
from luthier.recipe.columns import read_columns
from luthier.types import EVERY, Record

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


def test_the_hash_of_a_plain_record_is_that_of_older_versions():
    assert content_hash(record(0)) == "87e1f5a4e645206c4f406ccfa952ae1ec463042d7bb10123f34768d0084381b0"


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


def recipe_of(folder, **blocks):
    return load_recipe({"model": "nano", "data": {"train": "strings"}, **blocks}, base=folder)


READER = '''
from luthier.rewards.base import Answer, Reward


class {name}(Reward):
    """Right if the answer is the column."""
{fields}
    def score(self, answer: Answer) -> float:
        return float(answer.text == answer.record{read})
'''
SAYS = """
    @property
    def fields(self) -> tuple[str, ...]:
        return ("expected",)
"""


@pytest.mark.parametrize(
    "fields, read, columns",
    [("", ".fields['expected']", (EVERY,)), (SAYS, ".fields['expected']", ("expected",)), ("", ".origin", ())],
)
def test_a_reward_of_ones_own_tells_its_columns_or_all_count(tmp_path, fields, read, columns):
    (tmp_path / "mine.py").write_text(READER.format(name="Mine", fields=fields, read=read))
    assert read_columns(recipe_of(tmp_path, reward="./mine.py")) == columns


def test_the_columns_of_all_parts_are_collected(tmp_path):
    assert read_columns(recipe_of(tmp_path)) == ()
    rewards = [{"kind": "choice", "column": "options"}, {"kind": "cosine_length", "right": "code", "limit": 50}]
    recipe = recipe_of(
        tmp_path, reward=rewards, evaluate={"metric": "choice"}, train={"tuner": {"kind": "loramoe", "types": "kind"}}
    )
    assert set(read_columns(recipe)) == {"options", "tests", "choices", "kind"}


@pytest.mark.parametrize("slot", ["reward", "metric", "subset", "tuner", "strategy", "advantage", "selector"])
def test_a_part_that_reads_columns_says_so(slot):
    for entry in catalogue(slot):
        text = entry.path.read_text(encoding="utf-8")
        if "record.fields" in text:
            assert "def fields(self)" in text, entry.path
