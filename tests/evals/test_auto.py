"""The metric follows from the shape of the references."""

import pytest

from luthier.errors import DataError
from luthier.evals.auto import choose_metric


@pytest.mark.parametrize(
    ("references", "wanted"),
    [
        (['{"a": 1}', '{"b": [2]}'], "json_fields"),
        (["[1, 2]", "[3]"], "json_fields"),
        (["5 + 2 = 7\n#### 7", "#### 1,000"], "number"),
        (["The answer is 12.", "it costs $4.50", "-3", "(12)", "40 %"], "number"),
        (["12", "13 apples"] * 2 + ["a dozen and a half"], "chrf"),
        (["positive", "negative", "Positive ", "negative"], "exact"),
        (["one", "two", "three", "four"], "chrf"),
        (["A long answer about something that is not a label at all."] * 10, "chrf"),
        (["version v2", "see model7"] * 1 + ["open text"], "chrf"),
    ],
)
def test_by_references(record, references, wanted):
    records = [record(str(index), completion=text) for index, text in enumerate(references)]
    name, reason = choose_metric(records, references)
    assert name == wanted
    assert str(len(references)) in reason


def test_choices_come_first(record):
    records = [record(str(index), completion="1", choices=["1", "2"]) for index in range(3)]
    assert choose_metric(records, ["1"] * 3)[0] == "choice"


def test_a_near_miss_is_named(record):
    references = ['{"a": 1}'] * 19 + ['{"a": 1']
    records = [record(str(index), completion=text) for index, text in enumerate(references)]
    name, reason = choose_metric(records, references)
    assert name != "json_fields"
    assert "data.jsonl:19" in reason or name == "exact"


def test_no_records():
    with pytest.raises(DataError, match="no records"):
        choose_metric([], [])
