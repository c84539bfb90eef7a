"""preference_accuracy: which of two answers the model finds more probable."""

from types import SimpleNamespace

import pytest

from luthier import parts
from luthier.data.pairs import rows_of_record
from luthier.evals.answering import EvaluatedModel
from luthier.evals.auto import choose_metric
from luthier.evals.base import EvaluationError
from luthier.evals.evaluate import evaluate
from luthier.sampling.scoring import sequence_logprobs
from luthier.types import Record


def pair(name, chosen, rejected):
    fields = {"prompt": "ask", "chosen": chosen, "rejected": rejected, "completion": chosen}
    return Record(name, "preference", fields, f"data.jsonl:{name}")


@pytest.fixture
def score(module, letters, renderer, settings, record):
    def explain(one):
        sides = [renderer.render(record(one.id, completion=one.fields[side])) for side in ("chosen", "rejected")]
        return SimpleNamespace(rows=rows_of_record(one.id, sides))

    renderer.explain = explain

    def evaluated(records, metric="auto"):
        return evaluate(EvaluatedModel(module, letters, renderer, settings), records, metric)

    return evaluated


def test_a_pair_is_right_when_its_chosen_answer_is_more_probable(score, module, renderer, record):
    answers = ["yes", "no", "maybe so"]
    rows = [renderer.render(record(answer, completion=answer)) for answer in answers]
    total = {a: found[0] for a, found in zip(answers, sequence_logprobs(module, rows), strict=True)}
    likely, other = max(("yes", "no"), key=total.__getitem__), min(("yes", "no"), key=total.__getitem__)
    found = score([pair("a", likely, other), pair("b", other, likely), pair("c", "yes", "yes")])
    assert [item.score for item in found.items] == [1.0, 0.0, 0.5] and found.mean == 0.5
    assert [item.right for item in found.items] == [True, False, False]
    assert found.name == "preference_accuracy" and found.generated == 0 and found.ranks


def test_by_token_long_answers_have_a_chance():
    plain, by_token = (
        parts.build("metric", {"kind": "preference_accuracy", "normalize": how}) for how in ("none", "tokens")
    )
    assert plain.of_pair((-10.0, 5), (-9.0, 3)) == 0.0 and by_token.of_pair((-10.0, 5), (-9.0, 3)) == 1.0


def test_auto_takes_it_for_pairs_alone(record):
    pairs = [pair("a", "yes", "no")] * 3
    assert choose_metric(pairs, ["yes"] * 3)[0] == "preference_accuracy"
    assert choose_metric([*pairs, record("d")], ["yes"] * 4)[0] != "preference_accuracy"


def test_a_record_that_is_no_pair_is_named(score, record):
    with pytest.raises(EvaluationError, match=r"Record d \(data\.jsonl:d\) is no pair"):
        score([record("d")], "preference_accuracy")
