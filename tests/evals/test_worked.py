"""Worked examples: what the metric calls right and wrong, computed on the user's own references."""

import pytest

from luthier.evals.worked import explain_metric


@pytest.fixture
def explain(record, renderer):
    def explained(references, metric="auto", **columns):
        records = []
        for index, text in enumerate(references):
            more = {name: values[index] for name, values in columns.items()}
            records.append(record(f"{index:03}", completion=text, **more))
        return explain_metric(records, renderer, metric)

    return explained


DATES = [f"March {day}, 2024" for day in range(1, 31)]


def test_dates_are_told_apart_and_number_would_not(explain):
    chosen = explain(DATES)
    assert chosen.name == "exact" and "30 references are dates" in chosen.reason
    assert len(chosen.examples) == 3 and all(example.mistaken is None for example in chosen.examples)
    for example in chosen.examples:
        assert example.wrong[0] in DATES and example.wrong[1] == 0
    assert all(example.mistaken in DATES for example in explain(DATES, "number").examples)


@pytest.mark.parametrize(
    ("references", "metric"),
    [
        (["9 (apples)", "3 (km)", "7.0"], "number"),
        ([r"So $\\boxed{\\frac{1}{2}}$", r"\\boxed{-3}", "x^2"], "math"),
        (['{"a": 1, "b": 2}', '{"a": 1, "b": 3}'], "json_fields"),
        (["yes", "no"] * 3, "exact"),
        (["several words of open text", "others that are nothing like it"], "chrf"),
    ],
)
def test_every_example_has_a_right_and_a_wrong_answer(explain, references, metric):
    explained = explain(references)
    assert explained.name == metric and len(explained.examples) == min(3, len(set(references)))
    for example in explained.examples:
        assert example.right[1] >= 0.5 > example.wrong[1] or metric == "json_fields"
        assert example.right[1] > example.wrong[1] and example.reference in references


def test_choices_show_another_choice_and_perplexity_nothing(explain):
    explained = explain(["1", "0"], choices=[["red", "green"]] * 2)
    assert [(one.reference, one.right[0], one.wrong[0]) for one in explained.examples] == [
        ("green", "green", "red"), ("red", "red", "green")
    ]  # fmt: skip
    assert explain(["a", "b"], "perplexity").examples == ()
    assert explain(["a"]).examples[0].wrong is not None


def test_a_worked_number_is_right_in_fewer_words(explain):
    explained = explain([f"She has {n} and 4 more.\n{n} + 4 = {n + 4}\n#### {n + 4}" for n in range(9)])
    assert explained.name == "number" and explained.examples[0].right == ("The answer is 4", 1.0)
    assert explain([f"It is {n}." for n in range(1, 9)]).examples[0].right == ("The answer is 1.", 1.0)
