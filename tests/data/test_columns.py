"""Whole files as people write them: what is read of a record, what is counted, and what is learned."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import pytest

from luthier.data import identity, shapes
from luthier.data.forms.base import RecordShape
from luthier.data.identity import content_hash
from luthier.data.pairs import without_rejected
from luthier.data.prepare import prepare
from luthier.data.render import MARKED_LEARNED, Renderer
from luthier.data.shapes import EmptyAnswer, messages_of
from luthier.data.sources import load_records
from luthier.errors import DataError
from luthier.records.calls import LEGACY_TOOLS
from luthier.records.columns import BEGINS, JOINED_INPUT, NUMBERS, REPEATED, SYSTEM, TRUTHS, TWO_SYSTEMS, UNLISTED
from luthier.records.messages import CONTEXT, EMPTY_TURN, JSON_MESSAGES, NOTHING_LEARNED, PARTS, THINKING
from support.talk import assistant, learned, system, user


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"train": False}, {"loss": False}, {"training": "false"}, {"masked": True}, {"train": "No"}]
)
@pytest.mark.parametrize("family", ["chatml", "llama3", "mistral", "thinking"])
def test_a_marked_answer_is_context_and_its_mark_reaches_no_template(load, make_tokenizer, mark, family):
    messages = [user("Colour?"), assistant("Wrong answer.", **mark), user("No."), assistant("Sorry, red.")]
    (record,) = load({"messages": messages})
    renderer = Renderer(make_tokenizer(family))
    (only,) = learned(renderer, record)
    assert only.strip().startswith("Sorry, red.") and "Wrong answer." in renderer.prompt_text(record)
    assert messages_of(record) == [user("Colour?"), assistant("Wrong answer."), user("No."), assistant("Sorry, red.")]
    unmarked = load({"messages": messages_of(record)})[0]
    assert renderer.prompt_text(record) == renderer.prompt_text(unmarked)
    assert content_hash(record) != content_hash(unmarked)


def test_a_mark_that_is_not_read_is_said(report_of, load):
    answers = [assistant("Wrong.", mask=True, trainable="no"), user("No."), assistant("Red.", loss=0.25)]
    report = report_of({"messages": [user("Colour?"), *answers]})
    (warning,) = [words for words in report.warnings if "which answers are learned" in words]
    assert "`messages[].mask` (1 records)" in warning and "`messages[].trainable` (1 records)" in warning
    assert report.notes["answers whose `loss` is neither true nor false: learned like all others"] == 1
    with pytest.raises(DataError, match=r"messages\[0\]: the role must be text, found int \(1\)"):
        load({"messages": [{"role": 1, "content": "Colour?"}, assistant("red")]})


def test_held_out_records_without_a_reference_are_said(report_of):
    rows = [{"prompt": f"Name the colour of wall {n}.", "completion": f"c{n}", "label": n % 2 == 0} for n in range(40)]
    report = report_of(*rows, test=10)
    count = report.unscored["test"]
    assert 0 < count < 10 and set(report.unscored) == {"test"}
    assert any(words.startswith(f"{count} of 10 test records have `label: false`") for words in report.warnings)


def test_marks_hold_in_completions_and_at_the_end(load, make_tokenizer):
    renderer = Renderer(make_tokenizer())
    answers = [assistant("First.", weight=0), user("Go on."), assistant("Second.")]
    (record,) = load({"prompt": "Tell me.", "completion": answers})
    assert learned(renderer, record) == ["Second.<|im_end|>"]
    answers = [assistant("First."), user("Go on."), assistant("Second.", weight=0)]
    (record,) = load({"prompt": "Tell me.", "completion": answers})
    assert learned(renderer, record) == ["First.<|im_end|>"]
    (record,) = load({"messages": [user("Colour?"), assistant("red", weight=0)]})
    assert learned(renderer, record) == [] and record.notes == (CONTEXT, NOTHING_LEARNED)
    form = Renderer(make_tokenizer(), "Q: {prompt}\nA: {completion}")
    assert form.render(record).targets == 0
    with pytest.raises(DataError, match="rejected answer is marked as not to be learned"):
        load({"prompt": "Colour?", "chosen": [assistant("red")], "rejected": [assistant("blue", weight=0)]})


def test_targets_all_learn_marked_answers_too_and_say_so(load, make_tokenizer):
    (record,) = load({"messages": [user("Colour?"), assistant("red", weight=0), user("Sure?"), assistant("Blue.")]})
    rendering = Renderer(make_tokenizer(), targets="all").explain(record)
    assert rendering.row.targets == len(rendering.row) - 1 and MARKED_LEARNED in rendering.notes


def test_an_empty_answer_is_context_unless_it_is_the_last(load, make_tokenizer):
    turns = [user("Hello?"), assistant(""), user("Are you there?"), assistant("Yes.")]
    (record,) = load({"messages": turns})
    assert learned(Renderer(make_tokenizer()), record) == ["Yes.<|im_end|>"] and record.notes == (EMPTY_TURN,)
    (record,) = load({"prompt": turns[:3], "completion": "Yes."})
    assert learned(Renderer(make_tokenizer()), record) == ["Yes.<|im_end|>"]
    for row in ({"messages": turns[:2]}, {"messages": [*turns, user("?"), assistant(None, thinking="Hm.")]}):
        with pytest.raises(EmptyAnswer):
            load(row)


@pytest.mark.parametrize("shape", ["prompt_completion", "messages", "text"])
def test_a_label_beside_any_single_answer_is_read(write_rows, tmp_path, make_tokenizer, shape):
    def row(index):
        question, answer = f"Number {index}?", f"It is {index}."
        forms = {
            "prompt_completion": {"prompt": question, "completion": answer},
            "messages": {"messages": [user(question), assistant(answer)]},
            "text": {"text": f"{question} {answer}"},
        }
        return {**forms[shape], "label": index % 2 == 0}

    settings = SimpleNamespace(
        train=write_rows(*map(row, range(8))), validation=None, test=None, split_seed=0, group_by=None
    )
    settings.max_tokens, settings.too_long, settings.deduplicate = 200, "error", True
    prepared = prepare(settings, Renderer(make_tokenizer()), tmp_path)
    assert [float(row.streams["preferred"].values) for row in prepared.train] == [1, 0] * 4
    assert len(without_rejected(prepared.train)) == 4 and prepared.report.labelled_bad == 4
    assert "label" not in prepared.report.unread


def test_a_system_column_is_the_system_message(load, make_tokenizer):
    renderer, rule = Renderer(make_tokenizer()), {"system": "Answer in French."}
    talk = [user("Colour?"), assistant("rouge")]
    rows = [
        {"prompt": "Colour?", "completion": "rouge"},
        {"prompt": talk[:1], "completion": talk[1:]},
        {"messages": talk},
        {"prompt": "Colour?", "chosen": "rouge", "rejected": "rot"},
        {"chosen": talk, "rejected": [user("Colour?"), assistant("rot")]},
    ]
    for row in rows:
        (record,) = load({**row, **rule})
        assert messages_of(record)[0] == system("Answer in French.") and record.notes == (SYSTEM,)
        assert "system\nAnswer in French.<|im_end|>" in renderer.prompt_text(record)
        other = load({**row, "system": "Answer in German."})[0]
        assert content_hash(record) != content_hash(other)
        for nothing in ("", "  ", None):
            (plain,) = load({**row, "system": nothing})
            assert messages_of(plain)[0] == user("Colour?") and not plain.notes


def test_a_conversation_keeps_its_own_system_message(load):
    messages = [system("Be brief."), user("Colour?"), assistant("red")]
    for column, note in (("Answer in French.", TWO_SYSTEMS), (" Be brief.", SYSTEM)):
        (record,) = load({"messages": messages, "system": column})
        assert record.fields["messages"] == messages and record.notes == (note,)


def test_a_format_string_reads_system_by_its_name(load, make_tokenizer, report_of):
    row = {"system": "Answer in French.", "prompt": "Colour?", "completion": "rouge"}
    (record,) = load(row)
    named = Renderer(make_tokenizer(), "{system}\n{prompt}\n{completion}")
    assert named.prompt_text(record) == "Answer in French.\nColour?\n"
    assert Renderer(make_tokenizer(), "{prompt}\n{completion}").prompt_text(record) == "Colour?\n"
    assert report_of(row, render="{system}\n{prompt}\n{completion}").unread == {}
    report = report_of(row, render="{prompt}\n{completion}")
    assert report.unread == {"system": {"records": 1, "text": True}} and report.notes == {}


def test_a_repeated_prompt_is_asked_once(load, make_tokenizer):
    renderer = Renderer(make_tokenizer())
    once = load({"prompt": "Colour?", "chosen": "red", "rejected": "blue"})[0]
    good, bad = [user("Colour?"), assistant("red")], [user(" Colour?"), assistant("blue")]
    for row in (
        {"prompt": "Colour?", "chosen": good, "rejected": [good[0], assistant("blue")]},
        {"prompt": [user("Colour?")], "chosen": good, "rejected": [good[0], assistant("blue")]},
        {"prompt": "Colour?", "chosen": good, "rejected": bad},
        {"prompt": "Colour?", "chosen": json.dumps(good), "rejected": json.dumps([good[0], assistant("blue")])},
    ):
        (record,) = load(row)
        assert REPEATED in record.notes
        rows, expected = renderer.explain(record).rows, renderer.explain(once).rows
        assert [row.ids.tolist() for row in rows] == [row.ids.tolist() for row in expected]
    (record,) = load({"prompt": "Colour?", "completion": good})
    assert messages_of(record) == good and record.notes == (REPEATED,)


def test_a_prompt_that_a_later_turn_repeats_brings_the_turns_before_it(load):
    start = [system("Be brief."), user("Hi"), assistant("Hello"), user("Colour?")]
    (record,) = load(
        {"prompt": "Colour?", "chosen": [*start, assistant("red")], "rejected": [*start, assistant("blue")]}
    )
    assert record.fields["prompt"] == start and record.fields["chosen"] == [assistant("red")]
    (record,) = load({"prompt": "Hi", "completion": [*start[1:], assistant("red")]})
    assert record.fields["prompt"] == "Hi"
    assert record.fields["completion"] == [assistant("Hello"), user("Colour?"), assistant("red")]


def test_a_question_that_the_answer_asks_anew_is_no_repetition(load):
    (record,) = load({"prompt": "Colour?", "completion": [assistant("Which?"), user("Red."), assistant("Colour?")]})
    assert record.notes == () and len(record.fields["completion"]) == 3
    messages = [user("Colour?"), assistant("red")]
    (record,) = load({"prompt": "Colour?", "messages": messages})
    assert record.shape == "messages" and record.fields["messages"] == messages


ALPACA = [
    {"instruction": "Name the colour.", "input": "", "output": "red"},
    {"instruction": "Name the colour.", "input": "a blue thing", "output": "blue"},
]


def test_the_input_of_alpaca_is_part_of_the_prompt(load, report_of):
    expected = ["Name the colour.", "Name the colour.\n\na blue thing"]
    for prompt in ("instruction", ["instruction", "input"]):
        records = load(*ALPACA, columns={"prompt": prompt, "completion": "output"})
        assert [record.fields["prompt"] for record in records] == expected
    report = report_of(*ALPACA, columns={"prompt": "instruction", "completion": "output"})
    assert report.notes == {JOINED_INPUT: 1} and report.unread == {}


def test_a_format_string_that_has_a_place_for_the_input_gets_both_apart(load, make_tokenizer, report_of):
    columns, form = {"prompt": "instruction", "completion": "output"}, "{prompt} [{input}]: {completion}"
    texts = [Renderer(make_tokenizer(), form).prompt_text(record) for record in load(*ALPACA, columns=columns)]
    assert texts == ["Name the colour. []:", "Name the colour. [a blue thing]:"]
    assert report_of(*ALPACA, columns=columns, render=form).notes == {}


def test_several_columns_are_joined_and_numbers_are_written_as_text(load):
    columns = {"prompt": ["Body", "Question"], "completion": "Answer"}
    for number, text in ((7, "7"), (7.0, "7"), (0.5, "0.5"), (-3, "-3"), ("9 (apples)", "9 (apples)")):
        (record,) = load({"Body": "Ann has 4.", "Question": "And 3 more?", "Answer": number}, columns=columns)
        assert (record.fields["prompt"], record.fields["completion"]) == ("Ann has 4.\n\nAnd 3 more?", text)
        assert (NUMBERS in record.notes) == (not isinstance(number, str))
    (record,) = load({"Body": "", "Question": 12, "Answer": "x"}, columns=columns)
    assert record.fields["prompt"] == "12"
    for row, words in (
        ({"Body": "a", "Answer": "b"}, "takes prompt from `Question`, which is missing"),
        ({"Body": ["a"], "Question": "b", "Answer": "c"}, "joins `Body` into prompt, which holds list"),
        ({"Body": "a", "Question": "b", "Answer": {"is": 1}}, "`completion` must be a string"),
    ):
        with pytest.raises(DataError, match=words):
            load(row, columns=columns)


def test_choices_are_listed_in_the_prompt_and_kept(load, report_of):
    row = {"question": "Which barks?", "choices": ["a cat", "a dog"], "answer": 1}
    columns = {"prompt": ["question", "choices"], "completion": "answer"}
    (record,) = load(row, columns=columns)
    assert record.fields["prompt"] == "Which barks?\n\nA. a cat\nB. a dog"
    assert record.fields["choices"] == ["a cat", "a dog"] and UNLISTED not in record.notes
    other = {"question": "Which barks?", "options": ["A)3", "B)5"], "answer": "B"}
    (record,) = load(other, columns={**columns, "prompt": ["question", "options"], "choices": "options"})
    assert record.fields["prompt"] == "Which barks?\n\nA)3\nB)5" and record.fields["choices"] == ["A)3", "B)5"]
    with pytest.raises(DataError, match="joins `options` into prompt"):
        load(other, columns={**columns, "prompt": ["question", "options"]})


def test_a_letter_of_choices_that_no_prompt_lists_is_warned_of(load, report_of):
    columns = {"prompt": "question", "completion": "answer"}
    rows = [{"question": f"Which barks {n}?", "choices": ["a cat", "a dog"], "answer": "AB"[n % 2]} for n in range(20)]
    assert report_of(*rows, columns=columns).notes == {UNLISTED: 20}
    for row in (rows[0] | {"question": "Is it a cat or a dog?"}, rows[0] | {"answer": "a dog"}):
        assert UNLISTED not in load(row, columns=columns)[0].notes


def test_messages_as_text_are_read_as_messages(load, tmp_path):
    talk = [user("Colour?"), assistant('it\'s "red"\né')]
    for written in (json.dumps(talk), json.dumps(talk, ensure_ascii=False), str(talk)):
        (record,) = load({"messages": written})
        assert record.fields["messages"] == talk and record.notes == (JSON_MESSAGES,)
        for row in (
            {"prompt": str(talk[:1]), "completion": str(talk[1:])},
            {"prompt": json.dumps(talk[:1]), "chosen": json.dumps(talk[1:]), "rejected": json.dumps(talk[1:])},
        ):
            (record,) = load(row)
            assert messages_of(record) == talk
    import csv

    with (tmp_path / "talk.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages"], [json.dumps(talk)]])
    assert load_records("talk.csv", tmp_path)[0].fields["messages"] == talk


@pytest.mark.parametrize(
    "text",
    ['[{"role": "admin", "name": "Ann"}]', "[1, 2]", "[INST] a [/INST]", "[]", "[{}]", '[{"role": "user"}]', "[" * 200],
)
def test_other_texts_stay_texts(load, text):
    (record,) = load({"prompt": text, "completion": text})
    assert (record.fields["prompt"], record.fields["completion"]) == (text, text) and not record.notes


def test_a_single_message_and_messages_key_by_key_are_lists(load):
    row = {"prompt": [user("Colour?")], "chosen": assistant("red"), "rejected": {"from": "gpt", "value": "blue"}}
    (record,) = load(row)
    assert (record.fields["chosen"], record.fields["rejected"]) == ([assistant("red")], [assistant("blue")])
    (record,) = load({"messages": {"from": ["human", "gpt"], "value": ["Colour?", "red"], "weight": None}})
    assert record.fields["messages"] == [user("Colour?"), assistant("red")]


def test_a_column_of_functions_that_are_no_tools_is_left_alone(load):
    (record,) = load({"messages": [user("Colour?"), assistant("red")], "functions": ["f", "g"]})
    assert "tools" not in record.fields and not record.notes


def test_a_completion_may_write_messages_on_purpose(load):
    text = json.dumps([assistant("red")])
    (record,) = load({"prompt": "Write a message.", "completion": text})
    assert record.fields["completion"] == text


def test_conversions_and_unread_columns_are_counted(report_of):
    answer = assistant([{"type": "text", "text": "red"}], thinking="Hm.", mood="calm", remark="one two three four")
    rows = [{"messages": [user(f"Colour {index}?"), answer], "source": "web", "n": index} for index in range(3)]
    rows[0]["context"] = "A text that nobody reads here."
    report = report_of(*rows, template="thinking")
    assert report.notes[PARTS] == report.notes[THINKING] == 3
    assert report.unread == {
        "source": {"records": 3, "text": False},
        "n": {"records": 3, "text": False},
        "messages[].mood": {"records": 3, "text": False},
        "messages[].remark": {"records": 3, "text": True},
        "context": {"records": 1, "text": True},
    }
    (warning,) = [warning for warning in report.warnings if "nothing in the recipe reads" in warning]
    assert "`context` (1 records)" in warning and "`messages[].remark` (3 records)" in warning
    assert "source" not in warning
    assert "context" not in report_of(*rows, reads={"context"}).unread
    assert json.loads(json.dumps(report.to_json()))["unread"] == report.unread


@pytest.mark.parametrize("asked", [[user("a"), assistant("b"), user("Café?")], [user("b"), user("Cafe\u0301?")]])
def test_answers_that_repeat_the_last_turns_of_a_prompt_ask_once(load, asked):
    sides = {name: [user("Cafe\u0301?"), assistant(name)] for name in ("chosen", "rejected")}
    (record,) = load({"prompt": asked, **sides})
    assert messages_of(record) == [*asked, assistant("chosen")] and record.notes == (REPEATED,)
    assert record.fields["rejected"] == [assistant("rejected")]


def test_answers_that_begin_with_the_prompt_are_said(load):
    prompt = "def area(width, height):\n"
    (record,) = load({"prompt": prompt, "completion": f"{prompt}    return width * height"})
    assert record.notes == (BEGINS,) and record.fields["completion"].startswith(prompt)
    assert load({"prompt": "copy: ab", "completion": "copy: ab c"})[0].notes == ()


def test_truths_in_named_columns_are_words(load):
    columns = {"prompt": "question", "completion": "answer"}
    (record,) = load({"question": "Is red a colour?", "answer": False}, columns=columns)
    assert record.fields["completion"] == "false" and record.notes == (TRUTHS,)
    with pytest.raises(DataError, match="found bool"):
        load({"prompt": "Is red a colour?", "completion": False})


def test_tools_that_reading_made_of_functions_are_read(report_of):
    function = {"name": "paint", "description": "Paints a wall in a colour.", "parameters": {"type": "object"}}
    report = report_of({"messages": [user("Colour?"), assistant("red")], "functions": [function]})
    assert report.notes[LEGACY_TOOLS] == 1 and report.unread == {}


def test_a_text_that_is_read_elsewhere_is_no_warning(report_of):
    row = {"messages": [user("What is the colour of the wall?"), assistant("red")]}
    report = report_of({**row, "prompt": "What is the colour of the wall?", "choices": ["a b c d"], "id": "x"})
    assert report.unread == {"prompt": {"records": 1, "text": False}}
    assert report_of({**row, "history": [["another question was asked", "yes"]]}).unread["history"]["text"]
    assert report_of({**row, "note": "今天天气很好"}).unread["note"]["text"]
    assert not report_of({**row, "url": "https://example.org/a?b=c", "at": "2024-01-01 10:00 UTC"}).unread["at"]["text"]


class Rated(RecordShape):
    """Several answers with a mark each, in columns of its own."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("prompt", "answers", "marks")
    FORM: ClassVar[str] = "rated"

    def sides(self, record):
        rest = {name: cell for name, cell in record.fields.items() if name not in ("answers", "marks")}
        sides = []
        for number, answer in enumerate(record.fields["answers"]):
            fields = {**rest, "completion": answer}
            sides.append((f"answer-{number}", replace(record, shape="prompt_completion", fields=fields)))
        return tuple(sides)


def test_a_shape_of_the_users_own_keeps_its_columns(load, monkeypatch):
    part = Rated()
    monkeypatch.setattr(shapes, "shape_part", lambda shape: part if shape == "rated" else None)
    columns = {"rated": Rated.COLUMNS, **shapes.ONE_ANSWER}
    monkeypatch.setattr(shapes, "shape_columns", lambda: columns)
    monkeypatch.setattr(identity, "shape_columns", lambda: columns)
    row = {"answers": ["red", "blue"], "marks": [0.5, [1]], "system": "Be brief."}
    (record,) = load({**row, "prompt": "Colour?"})
    assert (record.fields["answers"], record.fields["marks"]) == (["red", "blue"], [0.5, [1]])
    assert record.fields["prompt"] == [system("Be brief."), user("Colour?")]
