"""Guessed columns: right, or none with the reason; never question and answer the wrong way round."""

import json

import pytest

from luthier.recipe import yaml
from luthier.records.guess import as_written, classes_beside, guess

ASK = ["How many apples?", "What is red?", "Who came?", "Where is it?"]
SAY = ["Four of them.", "A colour.", "Ann came in.", "It is here."]
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def rows(**columns):
    length = max(len(values) for values in columns.values())
    return [
        {name.replace("__", " "): values[index % len(values)] for name, values in columns.items()}
        for index in range(length)
    ]


@pytest.mark.parametrize(
    ("records", "columns"),
    [
        (rows(Answer=SAY, Question=ASK, ID=[0, 1, 2, 3]), {"prompt": "Question", "completion": "Answer"}),
        (rows(A=SAY, Q=ASK), {"prompt": "Q", "completion": "A"}),
        (rows(output=SAY, input=ASK), {"prompt": "input", "completion": "output"}),
        (rows(Antwort=SAY, Frage=ASK), {"prompt": "Frage", "completion": "Antwort"}),
        (rows(Lösung=SAY, Aufgabe=ASK), {"prompt": "Aufgabe", "completion": "Lösung"}),
        (rows(label=["good", "bad"], sentence=SAY), {"prompt": "sentence", "completion": "label"}),
        (rows(label=[True, False], sentence=SAY), {"prompt": "sentence", "completion": "label"}),
        (rows(question=ASK, ans=SAY, label=[True, False]), {"prompt": "question", "completion": "ans"}),
        (
            rows(question=ASK, passage=SAY, answer=[True, False]),
            {"prompt": ["passage", "question"], "completion": "answer"},
        ),
        (rows(Unnamed__0=["0", "1", "2", "3"], question=ASK, answer=["4", "5", "6", "7"]), None),
        (rows(instruction=SAY, input=["", "two", "three", ""], output=ASK), "alpaca"),
        (rows(instruction=SAY, input=["", ""], output=SAY), {"prompt": "instruction", "completion": "output"}),
        (rows(body=SAY, question=ASK, answer=["9 (apples)"], formula=["4+5=9"]), "asdiv"),
        (rows(ID=["a"], Body=SAY, Question=ASK, Equation=["( 4 + 5 )"], Answer=[9.0]), "svamp"),
        (
            rows(problem=ASK, level=["Level 5"], type=["Algebra"], solution=SAY),
            {"prompt": "problem", "completion": "solution"},
        ),
        (
            rows(question=ASK, choices=[["a", "b"]], answer=[1]),
            {"prompt": ["question", "choices"], "completion": "answer"},
        ),
        (rows(question=ASK, choices=[["a", "b"]], answer=["b"]), {"prompt": "question", "completion": "answer"}),
        (
            rows(question=ASK, options=[["red", "blue"]], answer=["B"]),
            {"prompt": ["question", "options"], "completion": "answer", "choices": "options"},
        ),
        (
            rows(premise=SAY, hypothesis=SAY[::-1], label=["yes"]),
            {"prompt": ["premise", "hypothesis"], "completion": "label"},
        ),
        (rows(question_text=ASK, correct_answer=SAY), {"prompt": "question_text", "completion": "correct_answer"}),
        (rows(prompt=ASK, chosen_response=SAY, rejected_response=SAY), "pairs"),
        (
            rows(question=ASK, good_answer=SAY, bad_answer=SAY),
            {"prompt": "question", "chosen": "good_answer", "rejected": "bad_answer"},
        ),
        (rows(conversations=[TALK]), {"messages": "conversations"}),
        (rows(conversations=[json.dumps(TALK)], id=["a"]), {"messages": "conversations"}),
        (rows(dialog=[[{"speaker": "a", "text": "Hi there"}, {"speaker": "b", "text": "Hello you"}]]), "inner"),
        (rows(content=SAY, source=["web"]), {"text": "content"}),
        (rows(source=SAY, target=ASK), {"prompt": "source", "completion": "target"}),
        (rows(alpha=SAY, beta=ASK), {"prompt": "beta", "completion": "alpha"}),  # by the question marks
        (rows(prompt=ASK, completion=[4, 5.5]), {"prompt": "prompt", "completion": "completion"}),
        (rows(question=ASK, result=[4, 5]), {"prompt": "question", "completion": "result"}),
        (
            rows(id=["a"], question=ASK, choices=[{"text": ["x", "y"], "label": ["A", "B"]}], answerKey=["A"]),
            {"prompt": ["question", "choices"], "completion": "answerKey"},
        ),
        (
            rows(question=ASK, options=[["A)1", "B)2"]], rationale=SAY, correct=["B"]),
            {"prompt": ["question", "options"], "completion": "correct", "choices": "options"},
        ),
    ],
)
def test_columns_are_guessed_from_names_types_and_contents(records, columns):
    expected = {
        None: {"prompt": "question", "completion": "answer"},
        "alpaca": {"prompt": ["instruction", "input"], "completion": "output"},
        "asdiv": {"prompt": ["body", "question"], "completion": "answer"},
        "svamp": {"prompt": ["Body", "Question"], "completion": "Answer"},
        "pairs": {"prompt": "prompt", "chosen": "chosen_response", "rejected": "rejected_response"},
        "inner": {"messages": "dialog", "role": "speaker", "content": "text"},
    }
    guessed = guess(records)
    assert guessed.columns == (expected[columns] if columns is None or isinstance(columns, str) else columns)
    assert yaml.parse(guessed.text, "guess").data == guessed.columns
    read = str(guessed.columns.values())
    assert all((f"'{name}'" in read) != (name in guessed.unread) for name in records[0])


@pytest.mark.parametrize(
    ("records", "words"),
    [
        (rows(alpha=SAY, beta=SAY[::-1], gamma=ASK), "3 columns of text, none with a usual name"),
        (rows(alpha=SAY, beta=SAY[::-1]), "2 columns of text"),
        (rows(answer=ASK, question=SAY), "against their names"),
        (rows(context=SAY, question=ASK, answers=[{"text": ["red"], "answer_start": [0]}]), "`answers` holds mappings"),
        (rows(alpha=[1, 2], beta=[3, 4]), "no column has a usual name"),
        (rows(dialog=[[{"x": "a", "y": "b"}, {"x": "a", "y": "b", "z": "e"}]]), "have the keys x, y, z"),
        (rows(content=SAY, summary=[1]), "beside another column of answers"),
        (rows(x=SAY, y=[4, 5]), "`y` may be what belongs to it"),
        (rows(chat_a=[TALK], chat_b=[TALK], winner=["a", "b"]), "`chat_a` may be what belongs to it"),
        (rows(question=ASK, id=["a"]), "nothing answers them"),
    ],
)
def test_without_evidence_nothing_is_offered_and_every_column_is_described(records, words):
    guessed = guess(records)
    assert guessed.columns == {} and words in guessed.reason
    assert all(f"`{name}` (" in guessed.hint for name in records[0])


def test_many_records_decide_and_not_the_first():
    records = [
        {"question": "Who?", "input": "", "instruction": None, "answer": "x"},
        *rows(instruction=SAY * 5, input=ASK, answer=SAY),
    ]
    assert guess(records).columns == {"prompt": ["instruction", "input"], "completion": "answer"}
    assert guess([*rows(answer=SAY * 300, question=ASK), {"other": 1}]).columns == {
        "prompt": "question",
        "completion": "answer",
    }


def test_names_that_yaml_would_misread_stand_in_quotes():
    columns = {"prompt": ["y", "a: b"], "completion": "3rd # column", "text": 'say "x"', "messages": "Frage 1"}
    assert yaml.parse(as_written(columns), "guess").data == columns
    assert "messages: Frage 1" in as_written(columns)


def test_labels_beside_plain_text_are_noticed():
    assert classes_beside(rows(text=SAY, label=["good", "bad"])) == "label"
    assert classes_beside(rows(text=SAY, url=["a"], label=[None])) is None
