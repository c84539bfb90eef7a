"""Every metric against values worked out by hand or by another implementation."""

import random

import pytest

from luthier.errors import RecipeError
from luthier.evals.base import Metric
from luthier.parts import build, catalogue
from luthier.types import Record

RECORD = Record("r", "prompt_completion", {}, "data.jsonl:1")


def score(metric, prediction, reference):
    return build("metric", metric).score(prediction, RECORD, reference)


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "wanted"),
    [
        ("exact", " Paris\n", "paris", 1),
        ("exact", "New\n  York", "new york", 1),
        ("exact", "Paris.", "Paris", 0),
        ({"kind": "exact", "ignore_case": False}, "paris", "Paris", 0),
        ({"kind": "exact", "ignore_space": False}, "Paris ", "Paris", 0),
        ("number", "so it is 1,200.0", "1200", 1),
        ("number", "first 7 and then 8", "7", 0),
        ("number", "no idea", "7", 0),
        ("number", r"$-\frac{1}{2}$", r"$\frac{1}{2}$", 0),
        ("number", r"$-\frac{1}{2}$", "-0.5", 1),
        ("number", "− 5", "-5", 1),
        ("number", "3,5", "3,5", 1),
        ("number", "4,5", "3,5", 0),
        ("number", "5", "3,5", 0),
        ("number", "3,5", "5", 0),
        ("number", "5 or 6", "6", 0),
        ("number", "5 or 6", "5 or 6", 1),
        ("number", "3 million", "3,000,000", 1),
        ("number", "3 million", "3", 0),
        ("math", r"\boxed{\frac{\sqrt{2}}{2}}", r"\boxed{1/\sqrt2}", 1),
        ("math", r"\boxed{-\frac{3}{4}}", r"\boxed{\frac{3}{4}}", 0),
        ({"kind": "math", "tolerance": 0.001}, "3.14", r"\boxed{\pi}", 1),
        ({"kind": "number", "after": "####"}, "5 #### 7", "3 #### 7", 1),
        ({"kind": "number", "after": "####"}, "it is 7", "3 #### 7", 0),
        ("json_valid", '{"a": [1, 2]}', "whatever", 1),
        ("json_valid", '{"a": [1, 2}', "whatever", 0),
        ("token_f1", "The cat, sat!", "a cat sat", 1),
        ("token_f1", "cat cat dog", "cat bird", 2 * 1 / 5),
        ("token_f1", "", "cat", 0),
        ("token_f1", "the", "an", 1),
        ("choice", " B", "B", 1),
        ("choice", "A", "B", 0),
    ],
)
def test_scores(metric, prediction, reference, wanted):
    assert score(metric, prediction, reference) == pytest.approx(wanted)


GOLD = '{"name": "Ann Lee", "age": 30, "tags": ["x", "y"], "at": {"city": "Rome", "zip": null}, "ok": true}'


@pytest.mark.parametrize(
    ("prediction", "wanted"),
    [
        (GOLD, 1),
        ('{"name": " Ann Lee ", "age": 30.0, "tags": ["x","y"], "at": {"city":"Rome","zip":null}, "ok":true}', 1),
        ('{"name": "ann lee", "age": 30, "tags": ["x", "y"], "at": {"city": "Rome", "zip": null}, "ok": true}', 6 / 7),
        ('{"name": "Ann Lee", "age": "30", "tags": ["y", "x"], "at": {"city": "Rome", "zip": null}, "ok": 1}', 3 / 7),
        ('{"name": "Ann Lee"}', 1 / 7),
        (GOLD[:-1] + ', "more": 1, "most": [1, 2]}', 7 / 10),
        ("not json", 0),
        (GOLD[:-1], 0),
        ("[]", 0),
    ],
)
def test_json_fields(prediction, wanted):
    assert score("json_fields", prediction, GOLD) == pytest.approx(wanted)
    assert score({"kind": "json_fields", "strict": True}, prediction, GOLD) == (wanted == 1)


def test_json_fields_options_and_edges():
    assert score({"kind": "json_fields", "ignore_case": True}, '{"a": "X"}', '{"a": "x"}') == 1
    assert score("json_fields", '{"a": {}}', '{"a": {}}') == 1
    assert score("json_fields", '{"a": []}', '{"a": {}}') == 0
    assert score("json_fields", '{"a": 0.30000000000000004}', '{"a": 0.3}') == 1
    assert score("json_fields", '{"a": 1}', '{"a": true}') == 0
    assert score("json_fields", '{"a": 0}', '{"a": 0.0}') == 1
    assert score("json_fields", '{"a": %s}' % ("9" * 400), '{"a": 0.5}') == 0
    assert score("json_fields", "[" * 300 + "]" * 300, '{"a": 0.5}') == 0


@pytest.mark.parametrize("metric", ["number", "json_fields", "math"])
def test_a_reference_that_cannot_be_scored(metric):
    with pytest.raises(ValueError, match="its reference"):
        score(metric, "1", "nothing here")


def test_choice_normalises():
    logprobs, choices, tokens = [-4.0, -5.0, -6.0], ["ab", "abcd", "abcde"], [1, 1, 3]
    picks = {way: build("metric", {"kind": "choice", "normalize": way}) for way in ("none", "tokens", "characters")}
    assert {way: part.pick(logprobs, choices, tokens) for way, part in picks.items()} == {
        "none": 0,
        "tokens": 2,
        "characters": 2,
    }
    assert picks["characters"].pick([-4.0, -5.0, -9.0], choices, tokens) == 1
    assert picks["none"].pick([-1.0, -1.0], ["a", "b"], [1, 1]) == 1
    assert picks["none"].pick([-1.0, -1.0], ["b", "a"], [1, 1]) == 0


def test_perplexity_weighs_by_tokens():
    part = build("metric", "perplexity")
    items = [part.of_logprobs(-2.0, 1), part.of_logprobs(-3.0, 3)]
    assert items == [2.0, 1.0]
    assert part.combine(items, [1, 3]) == pytest.approx(2.718281828 ** (5 / 4))
    assert not part.RANKS


def test_chrf_by_hand():
    # order 1: 2 of 3 and 2 of 2; order 2: 1 of 2 and 1 of 1; precision 7/12, recall 1
    assert score({"kind": "chrf"}, "a bc", "ab") == pytest.approx(5 * (7 / 12) / (4 * 7 / 12 + 1))
    assert score("chrf", "xyz", "ab") == 0
    assert score("chrf", "", "ab") == 0
    assert score("chrf", "same", "same") == 1


@pytest.mark.parametrize(("order", "beta"), [(6, 2), (3, 2), (6, 1)])
def test_chrf_equals_sacrebleu(order, beta):
    sacrebleu = pytest.importorskip("sacrebleu.metrics")
    theirs = sacrebleu.CHRF(char_order=order, word_order=0, beta=beta)
    draw = random.Random(order)
    for _ in range(200):
        answer, gold = ("".join(draw.choices("abc d", k=draw.randrange(1, 30))) for _ in range(2))
        if not answer.strip() or not gold.strip():
            continue
        ours = score({"kind": "chrf", "order": order, "beta": beta}, answer, gold)
        assert 100 * ours == pytest.approx(theirs.sentence_score(answer, [gold]).score, abs=1e-6)


@pytest.mark.parametrize("entry", catalogue("metric"), ids=lambda entry: entry.name)
def test_every_metric_is_described_and_takes_its_settings(entry):
    assert entry.about and entry.constants["NEEDS"][0] in {"generation", "choices", "logprobs", "pairs"}
    for options in build("metric", entry.name).SETTINGS:
        part = build("metric", {"kind": entry.name, **options})
        assert isinstance(part, Metric) and part.kind == entry.name


def test_options_are_checked():
    with pytest.raises(RecipeError, match="chrf"):
        build("metric", "chrff")
    with pytest.raises(RecipeError, match="order"):
        build("metric", {"kind": "chrf", "order": 0})
