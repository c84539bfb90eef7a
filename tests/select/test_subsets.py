"""Choosing among answers: S3FT's fallbacks and FARE's rejection sampling, on scripted rewards."""

from collections import Counter

import numpy

from luthier.parts import build
from luthier.types import Candidate, Record, Row, Stream


def candidate(record, index, reward, source="answers", length=3):
    weights = Stream(numpy.ones(length, dtype=numpy.float32), "token")
    row = Row(f"{record}@{source}.{index}", numpy.zeros(length, dtype=numpy.int32), {"weights": weights})
    return Candidate(Record(record, "text", {"text": ""}, ""), row, f"{source} {index}", source, reward)


def test_first_right_takes_own_answers_then_rewrites_then_gold():
    """The card's four examples: right; wrong then a right rewrite; wrong, wrong; right."""
    answers = [candidate(name, 0, reward) for name, reward in (("a", 1.0), ("b", 0.0), ("c", 0.0), ("d", 1.0))]
    rewrites = [candidate("b", 0, 1.0, "rewrites"), candidate("c", 0, 0.0, "rewrites")]
    gold = [candidate(name, 0, None, "data") for name in "abcd"]
    chosen = build("subset", "first_right").choose([*answers, *rewrites, *gold], {}, 0)
    routes = [([*answers, *rewrites, *gold])[index] for index in chosen]
    assert [(member.record.id, member.source) for member in routes] == [
        ("a", "answers"),
        ("b", "rewrites"),
        ("c", "data"),
        ("d", "answers"),
    ]


def test_first_right_without_gold_drops_or_keeps_the_last():
    wrong = [candidate("a", 0, 0.4), candidate("a", 1, 0.0)]
    assert build("subset", "first_right").choose(wrong, {}, 0) == []
    assert build("subset", {"kind": "first_right", "otherwise": "last"}).choose(wrong, {}, 0) == [1]
    assert build("subset", {"kind": "first_right", "right": 0.4}).choose(wrong, {}, 0) == [0]


def test_right_draws_evenly_among_right_samples():
    """Verdicts [A, B, B, A] with A wanted: the first or the last, equally often over seeds."""
    samples = [candidate("a", index, reward) for index, reward in enumerate((1.0, 0.0, 0.0, 1.0))]
    part = build("subset", "right")
    counts = Counter(part.choose(samples, {}, seed)[0] for seed in range(400))
    assert set(counts) == {0, 3} and abs(counts[0] - 200) < 60


def test_right_sorts_by_rate_stably_and_drops_the_unsolved():
    rates = {"a": (1, 0, 0, 0), "b": (1, 1, 1, 1), "c": (1, 1, 0, 0), "d": (1, 1, 1, 1), "e": (0, 0, 0, 0)}
    samples = [candidate(name, i, float(reward)) for name, rewards in rates.items() for i, reward in enumerate(rewards)]
    chosen = build("subset", "right").choose(samples, {}, 0)
    assert [samples[index].record.id for index in chosen] == ["b", "d", "c", "a"]
    kept = build("subset", {"kind": "right", "order": "data"}).choose(samples, {}, 0)
    assert [samples[index].record.id for index in kept] == ["a", "b", "c", "d"]


def test_right_takes_the_shortest_where_asked():
    samples = [candidate("a", 0, 1.0, length=9), candidate("a", 1, 1.0, length=4), candidate("a", 2, 0.0, length=2)]
    assert build("subset", {"kind": "right", "choice": "shortest"}).choose(samples, {}, 0) == [1]


def test_chances_of_keeping_a_record():
    """1 - (1 - p)^4 of four samples: the card's .9375 at p = .5."""
    draw = numpy.random.default_rng(0)
    part = build("subset", "right")
    samples = [candidate(f"{n}", i, float(draw.random() < 0.5)) for n in range(4000) for i in range(4)]
    assert abs(len(part.choose(samples, {}, 0)) / 4000 - 0.9375) < 0.012


def test_right_can_keep_all_that_is_right_and_gold():
    own = [candidate("a", index, reward) for index, reward in enumerate((1.0, 0.0, 1.0))] + [candidate("b", 0, 0.5)]
    gold = [candidate(name, 9, None, "data") for name in "ab"]
    choose = build("subset", {"kind": "right", "choice": "all", "order": "data"}).choose
    assert choose([*own, *gold], {}, 0) == [0, 2, 4, 5]
