import json
import random
from types import SimpleNamespace

import pytest

from luthier.data.prepare import prepare
from luthier.data.render import Renderer
from luthier.errors import DataError

WORDS = [f"word{index}" for index in range(400)]


def text(seed, count=10):
    return " ".join(random.Random(f"leaks:{seed}").choices(WORDS, k=count))


def plain(index, **columns):
    return {"prompt": text(index), "completion": text(f"answer {index}", 4), **columns}


def chat(*contents):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]}


def turn_by_turn(seed, turns=3):
    contents = [text(f"{seed}-{index}") for index in range(2 * turns)]
    return [chat(*contents[: 2 * count]) for count in range(1, turns + 1)]


@pytest.fixture
def prepared(make_tokenizer, tmp_path):
    def run(train, test="15%", render="chat", columns=(), **changes):
        for name, rows in (("train", train), ("test", test)):
            if not isinstance(rows, str):
                (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {
            "train": "train.jsonl",
            "validation": None,
            "test": test if isinstance(test, str) else "test.jsonl",
            "split_seed": 0,
            "max_tokens": 2000,
            "too_long": "error",
            "deduplicate": True,
            "group_by": None,
        }
        tokenizer = make_tokenizer("chatml") if render == "chat" else make_tokenizer(None)
        settings = SimpleNamespace(**settings | changes)
        return prepare(settings, Renderer(tokenizer, render), tmp_path, tmp_path / "cache", columns)

    return run


def leak(done):
    counts = dict(done.report.leakage["test"])
    counts.pop("examples")
    return {kind: count for kind, count in counts.items() if count}


def warning(done):
    return next((text for text in done.report.warnings if "will flatter" in text), "")


def test_no_answer_of_a_test_conversation_is_trained(prepared):
    done = prepared([row for seed in range(30) for row in turn_by_turn(seed)])
    trained = [json.dumps(done.records[name].fields["messages"]) for name in done.splits["train"]]
    for name in done.splits["test"]:
        messages = json.dumps(done.records[name].fields["messages"])
        assert not any(messages[:-1] in other or other[:-1] in messages for other in trained)
    assert leak(done) == {} and not warning(done)
    groups = {done.records[name].group for name in done.splits["test"]}
    assert len(done.splits["test"]) == 3 * len(groups) > 3


def test_an_own_test_file_with_conversations_of_train_is_told(prepared):
    conversations = [turn_by_turn(seed) for seed in range(12)]
    train = [rows[2] for rows in conversations]
    done = prepared(train, [rows[0] for rows in conversations[:5]] + turn_by_turn("other"))
    assert leak(done) == {"related": 5, "answers": 5}
    assert "Of 8 test records 5 are parts of a conversation" in warning(done)
    assert "5 have an answer that is trained behind the same question" in warning(done)
    groups = [done.records[name].group for name in done.splits["test"]]
    assert len(set(groups)) == 6


def test_a_question_of_a_later_turn_is_told(prepared):
    question, answer = text("q"), text("a")
    train = [chat(text(index), "yes", question if index == 3 else text(f"x{index}"), answer) for index in range(20)]
    assert leak(prepared(train, [chat(question, answer), chat(text("new"), answer)])) == {"answers": 1}


def test_equal_questions_and_whole_copies_are_told_apart(prepared):
    train = [plain(index) for index in range(30)]
    copies, questions = train[:4], [row | {"completion": "no"} for row in train[4:10]]
    near = [row | {"prompt": row["prompt"] + " please"} for row in train[10:12]]
    done = prepared(train, [*copies, *questions, *near, plain(99)])
    assert leak(done) == {"exact": 10, "near": 2, "answers": 4}
    assert "Of 13 test records 10 have a question that is also in train, 2 nearly so, 4 have an answer" in warning(done)


@pytest.mark.parametrize("common", ["Hello, I would like to ask you something today.", "Hi"])
def test_openings_and_short_answers_are_no_leak(prepared, common):
    train = [chat(common, "Of course, please do.", text(index), "yes") for index in range(40)]
    done = prepared(train, [chat(common, "Of course, please do.", text(f"t{index}"), "yes") for index in range(9)])
    assert leak(done) == {} and not warning(done)


def test_documents_of_one_column_are_on_one_side_and_leaks_into_a_file_are_told(prepared):
    rows = [{"text": text(index, 30), "document": index % 20} for index in range(100)]
    done = prepared(rows, group_by="document")
    sides = [{done.records[name].fields["document"] for name in done.splits[part]} for part in ("train", "test")]
    assert sides[0].isdisjoint(sides[1]) and len(done.splits["test"]) == 5 * len(sides[1]) > 5
    other = [{"text": text(f"t{index}", 30), "document": 15 + index} for index in range(10)]
    assert leak(prepared(rows, other, group_by="document")) == {"related": 5}
    assert leak(prepared(rows, [{"text": text("t", 30)}], group_by="document")) == {}
    with pytest.raises(DataError, match=r"`documents`, by which `data\.group_by`"):
        prepared(rows, group_by="documents")


FORM = "{prompt}\n{input}\nAnswer: {completion}"


def reviews(count=60):
    return [
        {"prompt": "Good or bad?", "completion": ("good", "bad")[index % 2], "input": text(index)}
        for index in range(count)
    ]


def test_what_the_format_string_writes_tells_records_apart(prepared):
    done = prepared(reviews(), render=FORM)
    assert len(done.records) == 60 and done.report.duplicates == 0 and leak(done) == {}
    texts = {done.train[index].ids.tobytes() for index in range(len(done.train))}
    assert len(texts) == len(done.train)


def test_tokens_of_another_text_in_a_column_are_not_taken_from_the_cache(prepared):
    first = prepared(reviews(), render=FORM)
    changed = [row | {"input": row["input"].upper()} for row in reviews()]
    second = prepared(changed, render=FORM)
    assert {row.ids.tobytes() for row in first.train}.isdisjoint({row.ids.tobytes() for row in second.train})


def test_the_same_review_in_an_own_test_file_is_a_leak_and_another_review_is_none(prepared):
    other = [{"prompt": "Good or bad?", "completion": "good", "input": text(f"t{index}")} for index in range(5)]
    assert leak(prepared(reviews(), [*reviews(3), *other], render=FORM)) == {"exact": 3, "answers": 3}


def test_choices_that_differ_tell_records_apart(prepared):
    rows = []
    for index in range(40):
        rows.append({"prompt": "Which is a fruit?", "completion": "fig", "choices": ["fig", text(index, 1)]})
    assert prepared(rows, test=rows[:1], columns=("choices",)).report.duplicates < 10
    assert prepared(rows, test=rows[:1]).report.duplicates == 39


def test_copies_within_a_test_file_are_told_and_share_a_group(prepared):
    rows = [plain(f"t{index}") for index in range(5)]
    done = prepared([plain(index) for index in range(20)], [*rows, *rows[:2]])
    assert any("2 of 7 test records are copies of another one there" in text for text in done.report.warnings)
    assert len({done.records[name].group for name in done.splits["test"]}) == 5


@pytest.mark.parametrize(
    "column, values, hinted",
    [("doc_id", 20, True), ("Source", 20, True), ("source", 2, False), ("row_id", 100, False), ("topic", 20, False)],
)
def test_a_column_that_seems_to_name_documents_is_offered(prepared, column, values, hinted):
    rows = [{"text": text(index, 30), column: f"d{index % values}"} for index in range(100)]
    notes = [note for note in prepared(rows).report.warnings if "data.group_by" in note]
    assert [f"`data.group_by: {column}`" in note for note in notes] == [True] * hinted
    assert not any("are in train and held out" in note for note in prepared(rows, group_by=column).report.warnings)
