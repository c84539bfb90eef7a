import random

import pytest

from luthier.data.sources import load_records
from luthier.datasets.base import belongs, draw_records
from luthier.errors import DataError
from luthier.parts import build, catalogue

NAMES = [entry.name for entry in catalogue("dataset")]


def digits(generator: random.Random) -> dict[str, str]:
    return {"prompt": str(generator.randrange(10)), "completion": "."}


def test_a_smaller_count_is_a_prefix_of_a_larger():
    def prompts(count: int) -> list[str]:
        return [record.fields["prompt"] for record in draw_records("digits", digits, count, 0, "train")]

    assert prompts(8)[:5] == prompts(5)
    assert len(set(prompts(10))) == 10


def test_asking_for_more_than_there_is_says_how_many_there_are():
    with pytest.raises(DataError, match="digits has only 10 different records of the 11"):
        draw_records("digits", digits, 11, 0, "train")


def test_draws_of_the_other_split_are_skipped():
    def draw(generator: random.Random) -> dict[str, str] | None:
        fields = {"prompt": str(generator.randrange(1000)), "completion": "."}
        return fields if belongs(fields["prompt"], "test") else None

    drawn = draw_records("numbers", draw, 50, 0, "test")
    assert all(belongs(record.fields["prompt"], "test") for record in drawn)


def test_one_in_five_is_held_out():
    share = sum(belongs(str(number), "test") for number in range(5000)) / 5000
    assert 0.18 < share < 0.22


def test_every_kind_is_found_by_its_name():
    assert NAMES == ["digits", "mix", "orders", "pairs", "retain", "shuffled", "strings", "sums"]


@pytest.mark.parametrize("name", ["orders", "retain", "strings", "sums"])
def test_records_repeat_load_and_differ(name: str, tmp_path):
    spec = {"kind": name, "count": 20}
    first, again = build("dataset", spec).records(), build("dataset", spec).records()
    assert first == again
    loaded = load_records(spec, tmp_path)
    assert len({record.id for record in loaded}) == 20
    assert build("dataset", spec | {"seed": 1}).records() != first


@pytest.mark.parametrize("name", ["orders", "strings", "sums"])
def test_the_global_random_state_neither_matters_nor_moves(name: str):
    random.seed(1)
    first = build("dataset", {"kind": name, "count": 5}).records()
    after = random.random()
    random.seed(1)
    assert random.random() == after
    assert build("dataset", {"kind": name, "count": 5}).records() == first


@pytest.mark.parametrize("name", ["orders", "strings", "sums"])
def test_no_test_prompt_occurs_in_training_whatever_the_seed(name: str):
    def contents(split: str, seed: int) -> set[str]:
        records = build("dataset", {"kind": name, "count": 300, "split": split, "seed": seed}).records()
        return {str(record.fields.get("messages", record.fields.get("prompt"))) for record in records}

    assert not contents("train", 0) & contents("test", 3)
