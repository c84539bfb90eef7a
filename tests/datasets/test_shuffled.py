"""Answers passed round: how many, that none is right, and that the rest stays."""

import pytest

from luthier import parts
from luthier.datasets.base import Dataset, as_record
from luthier.datasets.shuffled import Shuffled
from luthier.errors import DataError

SUMS = {"kind": "sums", "count": 60, "style": "plain"}


class Talks(Dataset):
    def records(self):
        return [as_record({"messages": [{"role": "user", "content": "hello"}]}, "talks:1")]


def made(**options):
    return parts.build("dataset", {"kind": "shuffled", "of": SUMS, **options}).records()


def test_a_share_of_the_answers_is_exchanged_and_marked():
    whole = parts.build("dataset", SUMS).records()
    found = made(share=0.2)
    wrong = [one for one in found if one.fields.get("shuffled")]
    assert len(found) == 60 and len(wrong) == 12
    assert [one.fields["prompt"] for one in found] == [one.fields["prompt"] for one in whole]
    assert sorted(one.fields["completion"] for one in found) == sorted(one.fields["completion"] for one in whole)
    changed = [
        one for one, other in zip(found, whole, strict=True) if one.fields["completion"] != other.fields["completion"]
    ]
    assert len(changed) >= 11 and all(one.fields["shuffled"] for one in changed)


def test_the_seed_chooses_and_the_share_counts():
    names = [{i for i, one in enumerate(made(seed=seed)) if one.fields.get("shuffled")} for seed in (0, 1)]
    assert names[0] != names[1]
    assert sum(bool(one.fields.get("shuffled")) for one in made(share=1.0)) == 60


def test_what_cannot_be_exchanged_is_said():
    with pytest.raises(DataError, match="none can be exchanged"):
        made(share=0.01)
    with pytest.raises(DataError, match="prompt and completion"):
        Shuffled(of=Talks()).records()
