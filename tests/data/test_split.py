import random

import pytest

from luthier.data.groups import group_records
from luthier.data.split import split_records
from luthier.errors import DataError, RecipeError
from luthier.types import Record

WORDS = [f"word{index}" for index in range(500)]


def record(index, prompt=None, completion="yes"):
    prompt = prompt if prompt is not None else " ".join(random.Random(index).choices(WORDS, k=30))
    return Record(str(index), "prompt_completion", {"prompt": prompt, "completion": completion}, f"data.jsonl:{index}")


def records(count, start=0):
    return [record(index) for index in range(start, start + count)]


def where(split):
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    return {member.id: name for name, part in parts.items() for member in part}


def test_shares_are_about_right_and_nothing_is_lost():
    split = split_records(records(1000), "10%", "15%")
    assert len(split.test) == pytest.approx(150, abs=40) and len(split.validation) == pytest.approx(100, abs=35)
    assert len(where(split)) == 1000 and split.duplicates == 0


def test_records_added_later_move_no_other():
    before = where(split_records(records(300), "10%", "15%"))
    after = where(split_records([*records(200, start=1000), *reversed(records(300))], "10%", "15%"))
    assert all(after[name] == part for name, part in before.items())


def test_the_seed_alone_draws_another_division():
    first, again, other = (where(split_records(records(300), "10%", "15%", seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_counts_are_exact():
    split = split_records(records(100), 7, 20)
    assert (len(split.validation), len(split.test)) == (7, 20)
    assert where(split_records(list(reversed(records(100))), 7, 20)) == where(split)


def test_a_small_data_set_still_gets_its_splits():
    for count in range(3, 12):
        split = split_records(records(count), "10%", "15%")
        assert split.validation and split.test and split.train


def test_no_split_asked_none_made():
    split = split_records(records(10), None, None)
    assert len(split.train) == 10 and not split.validation and not split.test


def test_exact_duplicates_are_removed_and_counted():
    copies = [record(index + 100, prompt=original.fields["prompt"]) for index, original in enumerate(records(5))]
    double = [*records(50), *copies]
    split = split_records(double, None, None)
    assert split.duplicates == 5 and len(split.train) == 50
    assert len(split_records(double, None, None, deduplicate=False).train) == 55


def test_near_duplicates_stay_together():
    base = records(200)
    variants = []
    for index, original in enumerate(base[:60]):
        words = original.fields["prompt"].split()
        words[3] = "changed"
        variants.append(record(1000 + index, " ".join(words)))
        variants.append(record(2000 + index, original.fields["prompt"].upper() + "!"))
    split = split_records([*base, *variants], "20%", "20%")
    split_of = where(split)
    for index in range(60):
        assert split_of[str(index)] == split_of[str(1000 + index)] == split_of[str(2000 + index)]
    assert len(split.groups) == 60 and set(split.groups) == {3}
    assert len(set(split_of.values())) == 3


def test_what_all_records_share_makes_no_duplicates():
    form = "Extract the invoice as JSON with the keys total, date and name, and write nothing else. Text: {} {} {}"
    filled = [record(index, form.format(*random.Random(index).choices(WORDS, k=3))) for index in range(300)]
    assert max(len(group) for group in group_records(filled).groups) <= 3


def test_one_question_for_all_does_not_send_all_to_one_split():
    same = [record(index, "Write a poem.", completion=f"poem {index}") for index in range(100)]
    split = split_records(same, "10%", "15%")
    assert split.train and split.validation and split.test


def test_groups_do_not_depend_on_the_order():
    base = records(100)
    variants = [record(1000 + index, original.fields["prompt"] + " end") for index, original in enumerate(base[:30])]
    every = [*base, *variants]
    shuffled = random.Random(1).sample(every, len(every))
    first, other = (
        {frozenset(order[index].id for index in group) for group in group_records(order).groups}
        for order in (every, shuffled)
    )
    assert first == other and sum(len(group) == 2 for group in first) == 30


def test_nothing_left_to_train_on_is_an_error():
    with pytest.raises(DataError, match="none is left to train on"):
        split_records(records(5), None, 5)


@pytest.mark.parametrize("share", ["ten", "100%", "-1%", -1, True, "5"])
def test_shares_must_be_shares(share):
    with pytest.raises(RecipeError, match=r"data\.test: .* is no share"):
        split_records(records(5), None, share)


def windows(name, count, length=60):
    """Texts of one document, each of which overlaps the next by a third."""
    words = random.Random(name).choices(WORDS, k=count * length)
    starts = range(0, len(words) - length, length * 2 // 3)
    texts = [" ".join(words[start : start + length]) for start in starts]
    return [Record(f"{name}-{index}", "text", {"text": text}, "x:1") for index, text in enumerate(texts)]


def test_a_split_that_large_groups_make_uneven_is_told_with_its_figures():
    three = [*windows("a", 40), *windows("b", 40), *windows("c", 38)]
    split = split_records(three, None, "10%")
    (note,) = split.notes
    assert len(split.groups) == 3 and len(split.test) == split.groups[2] > 40
    assert f"data.test asks for 10% ({len(three) / 10:.0f} of {len(three)} records) and gets {len(split.test)}" in note
    assert f"the largest group has {split.groups[0]}" in note
    single = split_records(windows("a", 40), "10%", "15%")
    assert not single.test and ["test" in note for note in single.notes] == [True, False]


def test_a_count_that_groups_cannot_fill_is_told():
    split = split_records([*windows("a", 20), *windows("b", 20)], None, 20)
    assert len(split.test) == 0 and "data.test asks for 20" in split.notes[0]


@pytest.mark.parametrize("count", [3, 10, 50, 1000])
def test_records_that_stand_alone_need_no_note(count):
    assert not split_records(records(count), "10%", "15%").notes
    assert not split_records(records(count), 1, 1).notes


def test_a_chain_of_near_duplicates_is_divided_and_told():
    words = random.Random(0).choices(WORDS, k=200)
    chain = [record(index, " ".join(words[index : index + 20])) for index in range(100)]
    split = split_records([*records(100, start=1000), *chain], "10%", "15%")
    assert split.test and split.train and any("100 of 200 records form chains" in note for note in split.notes)
