"""Evaluation end to end on a tiny random model whose own answers serve as references."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from luthier.errors import RecipeError
from luthier.evals.answering import EvaluatedModel
from luthier.evals.base import EvaluationError, Item
from luthier.evals.evaluate import evaluate, perplexity
from luthier.sampling.native import generate


@pytest.fixture
def own_answer(module, letters, renderer):
    def answer(prompt):
        found = generate(module, [letters(prompt)["input_ids"]], end_ids=renderer.end_ids, max_new_tokens=6)[0]
        return letters.decode(found.ids, skip_special_tokens=True)

    return answer


@pytest.fixture
def run(module, letters, renderer, settings):
    def evaluated(records, metric, generate=settings, seed=0, **more):
        return evaluate(EvaluatedModel(module, letters, renderer, generate, seed), records, metric, **more)

    return evaluated


def test_generated_answers_are_scored_in_record_order(run, record, own_answer):
    prompts = ["q", "wxyz", "some words", "more of them"]
    records = [record(name, prompt, own_answer(prompt)) for name, prompt in zip("dbca", prompts, strict=True)]
    records[1] = record("b", "wxyz", "something else")
    seen = []
    found = run(records, "exact", progress=lambda done, total: seen.append((done, total)))
    assert [item.id for item in found.items] == ["a", "b", "c", "d"]
    assert [item.score for item in found.items] == [1, 0, 1, 1]
    assert (found.mean, found.n, found.name) == (0.75, 4, "exact")
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert found.items[3].prompt == "q" and found.items[3].right and found.generated >= 4
    again = run(records[::-1], "exact")
    assert again == found
    line = json.loads(json.dumps({"set": "target", **found.items[0].to_json()}))
    assert Item.from_json(line) == found.items[0]
    assert found.to_json()["mean"] == 0.75


def test_items_say_to_which_group_they_belong(run, record):
    records = [replace(record("a"), group="a"), replace(record("b"), group="a"), record("c")]
    lines = [answered.to_json() for answered in run(records, "exact").items]
    assert [(line["id"], line["group"]) for line in lines] == [("a", "a"), ("b", "a"), ("c", "c")]
    older = {key: cell for key, cell in lines[1].items() if key != "group"}
    assert Item.from_json(lines[1]).group == "a" and Item.from_json(older).group == "b"


def test_a_bad_answer_is_no_reference(run, record, own_answer):
    good = record("a", "q", own_answer("q"))
    bad = replace(record("b", "ask", "x"), fields={"prompt": "ask", "completion": "x", "label": False})
    assert [item.id for item in run([bad, good], "exact").items] == ["a"]
    with pytest.raises(EvaluationError, match=r"no records to evaluate\. All 1 have `label: false`"):
        run([bad], "exact")


def test_an_answer_that_is_marked_as_context_is_no_reference(run, record, own_answer):
    good = record("a", "q", own_answer("q"))
    turns = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "x", "learn": False}]
    messages = replace(record("b"), shape="messages", fields={"messages": turns})
    completion = replace(record("c"), fields={"prompt": turns[:1], "completion": turns[1:]})
    assert [item.id for item in run([messages, completion, good], "exact").items] == ["a"]


def test_sampling_is_keyed_by_seed_and_record(run, record, settings):
    warm = settings.model_copy(update={"temperature": 1.0})
    records = [record(name, "ask", "x") for name in "abc"]
    whole = run(records, "chrf", warm)
    part = run(records[1:], "chrf", warm)
    assert part.items == whole.items[1:]
    assert len({item.prediction for item in whole.items}) == 3
    assert run(records, "chrf", warm, seed=1).items != whole.items


def test_choices_by_log_probability(run, module, letters, record):
    def total(prompt, choice):
        ids = letters(prompt)["input_ids"]
        whole = ids + [ord(letter) for letter in choice]
        with torch.no_grad():
            values = module(torch.tensor([whole])).logits[0].log_softmax(-1)
        return sum(values[place - 1, whole[place]].item() for place in range(len(ids), len(whole)))

    choices = ["yes", "no", "perhaps"]
    records = [record(str(index), f"question {index}", "no", choices=choices) for index in range(6)]
    found = run(records, "auto")
    wanted = [max(choices, key=lambda choice: total(f"question {index}", choice)) for index in range(6)]
    assert [item.prediction for item in found.items] == wanted
    assert [item.score for item in found.items] == [float(one == "no") for one in wanted]
    assert found.name == "choice" and found.generated == 0 and found.items[0].finish is None


@pytest.mark.parametrize("naming", ["text", "letter", "index", "number"])
def test_letters_and_indices_score_the_same_choices_as_texts(run, record, naming):
    choices = ["yes", "no", "perhaps"]
    names = {"text": choices, "letter": ["A", "(B)", "C."], "index": ["0", "1", "2"], "number": ["1", "2", "3"]}[naming]
    by_text = run([record(str(i), f"question {i}", choices[i % 3], choices=choices) for i in range(6)], "auto")
    named = run([record(str(i), f"question {i}", names[i % 3], choices=choices) for i in range(6)], "auto")
    assert named.items == by_text.items
    words = {"text": "`choices`", "letter": "letters", "index": "indices", "number": "numbers"}
    assert words[naming] in named.reason
    written = {"kind": "choice", "answers": naming}
    assert (
        run([record(str(i), f"question {i}", names[i % 3], choices=choices) for i in range(6)], written).mean
        == by_text.mean
    )


def test_where_the_prompt_lists_the_choices_their_letters_are_scored(run, record):
    choices = ["yes", "no", "perhaps"]
    prompt = "Which? (A) yes (B) no (C) perhaps"
    letters = run([record("a", prompt, "(B)", choices=choices)], "auto")
    same = run([record("a", prompt, "(B)", choices=["(A)", "(B)", "(C)"])], "auto")
    assert letters.items == same.items and letters.items[0].reference == "(B)"
    assert "which the prompts list" in letters.reason
    texts = run([record("a", prompt, "no", choices=choices)], "auto")
    assert texts.items[0].reference == "no"


def test_choices_that_are_numbers_are_read_alike_in_the_whole_set(run, record):
    sums = [
        record("a", "2+1", "2", choices=["1", "2", "3", "4"]),
        record("b", "1+1", "1", choices=["1", "2", "5", "7"]),
    ]
    indices = [*sums, record("c", "1+4", "0", choices=["5", "6", "7", "8"])]
    assert [item.reference for item in run(sums, "auto").items] == ["2", "1"]
    assert "`index`" in run(sums, "auto").reason
    assert [item.reference for item in run(indices, "auto").items] == ["3", "2", "5"]
    written = {"kind": "choice", "answers": "index"}
    assert [item.reference for item in run(sums, written).items] == ["3", "2"]


def test_records_with_their_own_metric(run, record):
    records = [
        record("a", "ask", "x", metric={"kind": "chrf", "order": 2}),
        record("b", "ask", "7", metric="number"),
        record("c", "ask", "yes", choices=["yes", "no"]),
        record("d", "ask", '{"a": 1}'),
    ]
    found = run(records, "auto")
    assert [item.metric for item in found.items] == ["chrf", "number", "choice", "json_fields"]
    assert found.name == "mixed"
    assert found.mean == pytest.approx(sum(item.score for item in found.items) / 4)
    assert [item.metric for item in run(records, "exact").items][2:] == ["exact", "exact"]


def test_perplexity_as_metric_and_helper(run, module, renderer, record):
    records = [record("a", "ask", "answer"), record("b", "why", "because so")]
    rows = [renderer.render(one) for one in records]
    found = run(records, "perplexity")
    totals = []
    for row in rows:
        ids = torch.tensor([row.ids.tolist()])
        labels = torch.where(torch.tensor(row.streams["weights"].values)[None] != 0, ids, -100)
        with torch.no_grad():
            totals.append(module(ids, labels=labels).loss.item() * row.targets)
    wanted = math.exp(sum(totals) / sum(row.targets for row in rows))
    assert found.mean == pytest.approx(wanted, rel=1e-5)
    assert perplexity(module, rows) == pytest.approx(wanted, rel=1e-5)
    assert not any(item.right for item in found.items) and not found.ranks


@pytest.mark.parametrize(
    ("fields", "metric", "message"),
    [
        ({"completion": "none"}, "number", "Record bad .*no number"),
        ({"completion": "none"}, "json_fields", "Record bad .*not JSON"),
        ({"completion": "maybe", "choices": ["yes", "no"]}, "choice", "Record bad .*`choices`"),
        ({}, "choice", "Record bad .*`choices`"),
        ({"metric": "nmber"}, "auto", "Record bad .*no metric called"),
        ({"metric": "perplexity"}, "exact", "Record bad.*cannot be averaged"),
        ({"masked": True}, "perplexity", "Record bad .*no target"),
    ],
)
def test_what_cannot_be_scored_names_the_record(run, record, fields, metric, message):
    good = {"number": "1", "json_fields": "{}", "choice": "yes"}.get(metric, "x")
    records = [record("a", completion=good, choices=["yes", "no"]), record("bad", **fields)]
    with pytest.raises(EvaluationError, match=message):
        run(records, metric)


@pytest.mark.parametrize(
    ("body", "message"), [("1 / 0", "failed: ZeroDivisionError"), ("2.0", "gave 2.0"), ("float('nan')", "gave nan")]
)
def test_a_users_metric_that_breaks(run, record, tmp_path, body, message):
    (tmp_path / "mine.py").write_text(
        "from luthier.evals.base import Metric\n\n\nclass Mine(Metric):\n    'Mine.'\n\n"
        f"    def score(self, prediction, record, reference):\n        return {body}\n"
    )
    with pytest.raises(EvaluationError, match=f"Record a .*mine.*{message}"):
        run([record("a")], "mine.py", base=tmp_path)


@pytest.mark.parametrize("metric", ["choice", "perplexity"])
def test_a_model_with_broken_weights_scores_nothing(run, module, renderer, record, metric):
    weight = module.model.norm.weight
    kept = weight.detach().clone()
    weight.data.fill_(float("nan"))
    try:
        with pytest.raises(EvaluationError, match=r"Record a .*nan"):
            run([record("a", completion="yes", choices=["yes", "no"])], metric)
        with pytest.raises(EvaluationError, match=r"Record a: .*nan"):
            perplexity(module, [renderer.render(record("a"))])
    finally:
        weight.data.copy_(kept)


def test_nothing_to_evaluate(run, module, renderer, record):
    with pytest.raises(EvaluationError, match="no records"):
        run([], "exact")
    with pytest.raises(RecipeError, match="exact"):
        run([record("a")], "exactt")
    with pytest.raises(EvaluationError, match="no target"):
        perplexity(module, [renderer.render(record("a", masked=True))])


def test_metrics_need_no_torch():
    code = (
        "import sys\nfrom luthier.parts import build, catalogue\nimport luthier.evals.retention, luthier.evals.auto\n"
        "[build('metric', entry.name) for entry in catalogue('metric')]\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stop_strings_and_filters_of_the_generate_block_reach_the_sampler(run, record, settings):
    records = [record(name, name * 3, "x") for name in "abcdef"]

    def texts(**more):
        return [item.prediction for item in run(records, "chrf", settings.model_copy(update=more), seed=3).items]

    plain = texts()
    stop = next(text for text in plain if len(text) > 1)[1]
    assert texts(stop=[stop]) == [text.split(stop)[0] for text in plain] != plain
    assert texts(temperature=2.0) != plain
    assert texts(temperature=2.0, top_p=1e-6) == texts(temperature=2.0, min_p=0.999999) == plain
