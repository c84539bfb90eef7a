"""Pairs: the right answer is chosen, the rejected one differs by one slip, and the seed decides where."""

import random

import pytest

from luthier import parts
from luthier.datasets.base import Dataset, as_record
from luthier.datasets.pairs import Pairs, with_slip
from luthier.errors import DataError

STRINGS = {"kind": "strings", "tasks": ["sort", "count"], "count": 40}


def made(**options):
    return parts.build("dataset", {"kind": "pairs", "of": STRINGS, **options}).records()


def test_the_gold_answer_is_chosen_and_a_near_one_rejected():
    whole = parts.build("dataset", STRINGS).records()
    for one, other in zip(made(), whole, strict=True):
        assert one.shape == "preference" and "completion" not in one.fields
        assert (one.fields["prompt"], one.fields["chosen"]) == (other.fields["prompt"], other.fields["completion"])
        assert one.fields["rejected"] != one.fields["chosen"]
        assert sorted(one.fields["rejected"]) == sorted(one.fields["chosen"]) or len(one.fields["rejected"]) == 0


def test_the_seed_decides_where_the_slip_is():
    assert made() == made()
    assert [one.fields["rejected"] for one in made(seed=1)] != [one.fields["rejected"] for one in made()]


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
