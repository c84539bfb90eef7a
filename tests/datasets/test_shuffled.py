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


def shuffled_records(**options):
    return parts.build("dataset", {"kind": "shuffled", "of": SUMS, **options}).records()


def test_a_share_of_the_answers_is_exchanged_and_marked():
    originals = parts.build("dataset", SUMS).records()
    records = shuffled_records(share=0.2)
    wrong = [record for record in records if record.fields.get("shuffled")]
    assert len(records) == 60 and len(wrong) == 12
    assert [record.fields["prompt"] for record in records] == [record.fields["prompt"] for record in originals]
    answers = [record.fields["completion"] for record in records]
    gold = [record.fields["completion"] for record in originals]
    assert sorted(answers) == sorted(gold)
    changed = [index for index in range(60) if answers[index] != gold[index]]
    assert len(changed) >= 11 and all(records[index].fields["shuffled"] for index in changed)


def exchanged(**options):
    return {index for index, record in enumerate(shuffled_records(**options)) if record.fields.get("shuffled")}


def test_the_seed_chooses_and_the_share_counts():
    assert exchanged(seed=0) != exchanged(seed=1)
    assert len(exchanged(share=1.0)) == 60


def test_what_cannot_be_exchanged_is_said():
    with pytest.raises(DataError, match="none can be exchanged"):
        shuffled_records(share=0.01)
    with pytest.raises(DataError, match="prompt and completion"):
        Shuffled(of=Talks()).records()
