"""Pairs: the right answer is chosen, the rejected one differs by one slip, and the seed decides where."""

import random

import pytest

from luthier import parts
from luthier.datasets.base import Dataset, as_record
from luthier.datasets.pairs import Pairs, with_slip
from luthier.errors import DataError

STRINGS = {"kind": "strings", "tasks": ["sort", "count"], "count": 40}


def drawn_pairs(**options):
    return parts.build("dataset", {"kind": "pairs", "of": STRINGS, **options}).records()


def test_the_gold_answer_is_chosen_and_a_near_one_rejected():
    originals = parts.build("dataset", STRINGS).records()
    for pair, record in zip(drawn_pairs(), originals, strict=True):
        assert pair.shape == "preference" and "completion" not in pair.fields
        assert (pair.fields["prompt"], pair.fields["chosen"]) == (record.fields["prompt"], record.fields["completion"])
        assert pair.fields["rejected"] != pair.fields["chosen"]
        assert sorted(pair.fields["rejected"]) == sorted(pair.fields["chosen"]) or len(pair.fields["rejected"]) == 0


def test_the_seed_decides_where_the_slip_is():
    assert drawn_pairs() == drawn_pairs()
    assert [pair.fields["rejected"] for pair in drawn_pairs(seed=1)] != [
        pair.fields["rejected"] for pair in drawn_pairs()
    ]


def test_a_slip_exchanges_neighbours_that_differ_or_drops_the_last():
    assert with_slip("aab", random.Random(0)) == "aba"
    assert {with_slip("abc", random.Random(seed)) for seed in range(20)} == {"bac", "acb"}
    assert (with_slip("aaa", random.Random(0)), with_slip("7", random.Random(0))) == ("aa", "")


class Talks(Dataset):
    def records(self):
        return [as_record({"messages": [{"role": "user", "content": "hello"}]}, "talks:1")]


def test_conversations_are_refused():
    with pytest.raises(DataError, match="Only answers that are text"):
        Pairs(of=Talks()).records()
