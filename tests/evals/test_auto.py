"""The metric follows from the shape of the references."""

import pytest

from luthier.errors import DataError
from luthier.evals.auto import choose_metric
from luthier.evals.evaluate import assign_metrics


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
        ([f"March {day}, 2024" for day in range(1, 20)], "exact"),
        ([f"{day} May 1945" for day in range(1, 20)], "exact"),
        ([f"2024-03-{day}" for day in range(10, 30)], "exact"),
        ([f"12:{minute}" for minute in range(10, 30)], "exact"),
        ([f"{hour} pm" for hour in range(1, 13)], "exact"),
        ([f"{goals}-2" for goals in range(9)], "exact"),
        ([f"{part}:4" for part in range(9)], "exact"),
        ([f"1.2.{patch}" for patch in range(9)], "exact"),
        ([f"SELECT name FROM people LIMIT {rows}" for rows in range(9)], "exact"),
        ([f"print({line})" for line in range(9)], "exact"),
        ([f"https://a.org/{page}" for page in range(9)], "exact"),
        ([f"Toy Story {part}" for part in range(9)], "exact"),
        ([f"{number} Angry Men" for number in range(9)], "exact"),
        ([f"+1 555 123 45{number}" for number in range(10, 19)], "exact"),
        ([f"AB-{number}" for number in range(9)], "exact"),
        (["02134", "90210", "10001", "94105"], "exact"),
        ([f"10x{side}" for side in range(15, 24)], "exact"),
        ([f"0x1{digit}" for digit in "3456789ABC"], "exact"),
        ([f"4k{digit}" for digit in range(1, 9)], "exact"),
        ([f"12{letter}" for letter in "abdefkxyz"], "exact"),
        ([f"3,{digit}" for digit in range(1, 9)], "exact"),
        (["9 (apples)", "3 (km)", "7.0", "1/2"], "number"),
        (["5 square meters", "45 miles per hour", "12km", "20°C"], "number"),
        (["The treaty was signed by all the parties of the long war in 1945."] * 3, "chrf"),
        (["3 boxes of 4 pens hold 3 * 4 = 12 pens.\nSo she has 12 pens."] * 3, "number"),
        ([r"So it is $\boxed{\frac{1}{2}}$.", r"We get \boxed{7}."], "math"),
        ([r"\frac{1}{2}", "3", r"\sqrt{2}", "(1, 2)", "2x+1"], "math"),
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


def test_a_few_odd_references_do_not_change_the_metric_and_are_scored_by_their_own(record):
    references = ['{"a": 1}'] * 19 + ['{"a": 1']
    records = [record(str(index), completion=text) for index, text in enumerate(references)]
    name, reason = choose_metric(records, references)
    assert name == "json_fields" and "19 of 20" in reason and "data.jsonl:19" in reason
    metrics, _ = assign_metrics(records, {str(index): text for index, text in enumerate(references)}, "auto", None)
    assert [metrics[str(index)].kind for index in (0, 18, 19)] == ["json_fields", "json_fields", "exact"]
    numbers = [*map(str, range(38)), "a dozen", r"\boxed{\sqrt2}"]
    records = [record(str(index), completion=text) for index, text in enumerate(numbers)]
    metrics, reason = assign_metrics(records, {str(index): text for index, text in enumerate(numbers)}, "auto", None)
    assert [metrics[str(index)].kind for index in (0, 37, 38, 39)] == ["number", "number", "exact", "math"]
    assert "38 of 40" in reason and "data.jsonl:38" in reason


def test_a_near_miss_is_named(record):
    references = ['{"a": 1}'] * 7 + ["no object, but several words of running text"] * 3
    records = [record(str(index), completion=text) for index, text in enumerate(references)]
    name, reason = choose_metric(records, references)
    assert name == "chrf"
    assert "data.jsonl:7" in reason and "json_fields" in reason


def test_every_chosen_metric_scores_its_references(record):
    """Whatever `auto` chooses gives each reference 1 as its own answer: nothing is refused that was chosen for."""
    odd = [
        "",
        "#### ",
        r"\boxed{}",
        "1/0",
        "5/0",
        "3,5",
        "$",
        "%",
        "9" * 500,
        "12 pm",
        "()",
        "####x",
        "é",
        "(,)",
        "0x1f",
    ]
    odd += ["-", "$-$", "1e999", r"\frac{1}{0}", "x = 1, y = 2", "5 or 6", "3–4", r"\boxed{a", "½ cup", "１２", "1 2 3"]
    for text in odd:
        for others in (["7", "8"] * 10, [r"\boxed{7}"] * 20, ['{"a": 1}'] * 20, []):
            references = {str(index): reference for index, reference in enumerate([*others, text])}
            records = [record(index, completion=reference) for index, reference in references.items()]
            metrics, _ = assign_metrics(records, references, "auto", None)
            for one_record in records:
                reference = references[one_record.id]
                assert metrics[one_record.id].score(reference, one_record, reference) == 1, (text, reference)


def test_no_records():
    with pytest.raises(DataError, match="no records"):
        choose_metric([], [])
