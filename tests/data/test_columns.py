"""Whole files as people write them: what is read of a record, what is counted, and what is learned."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import ClassVar

import numpy
import pytest

from luthier.data import shapes
from luthier.data.forms.base import RecordShape
from luthier.data.pairs import without_rejected
from luthier.data.prepare import prepare
from luthier.data.render import MARKED_LEARNED, Renderer
from luthier.data.shapes import EmptyAnswer, content_hash, messages_of
from luthier.data.sources import load_records
from luthier.errors import DataError
from luthier.records.calls import LEGACY, PARSED
from luthier.records.columns import JOINED_INPUT, NUMBERS, REPEATED, SYSTEM, TWO_SYSTEMS, names_in
from luthier.records.messages import CONTEXT, EMPTY_TURN, JSON_MESSAGES, NOTHING_LEARNED, PARTS, THINKING
from luthier.records.nulls import ABSENT

CALLS = """{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>{% endfor %}{% for message in messages %}\
<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}<call>{{ call.function.name }} \
{{ call.function.arguments | tojson }}</call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


@pytest.fixture
def write(tmp_path):
    def _write(*rows, name="data.jsonl"):
        if name.endswith(".parquet"):
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), tmp_path / name)
        else:
            (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    return _write


@pytest.fixture
def load(write, tmp_path):
    def _load(*rows, columns=None, name="data.jsonl"):
        return load_records({"path": write(*rows, name=name), "columns": columns or {}}, tmp_path)

    return _load


@pytest.fixture
def report_of(write, tmp_path, make_tokenizer):
    def _report(*rows, render="chat", reads=(), template="chatml", columns=None):
        source = {"path": write(*rows), "columns": columns or {}}
        settings = SimpleNamespace(train=source, validation=None, test=None, split_seed=0, max_tokens=2000)
        settings.too_long, settings.deduplicate = "error", False
        return prepare(settings, Renderer(make_tokenizer(template), render), tmp_path, reads=reads).report

    return _report


def learned(renderer, record):
    """The runs of targets as text."""
    row = renderer.render(record)
    targets = row.streams["weights"].values != 0
    borders = numpy.flatnonzero(numpy.diff(numpy.concatenate([[False], targets, [False]])))
    decode = renderer.tokenizer.decode
    return [decode(row.ids[start:end].tolist()) for start, end in zip(borders[::2], borders[1::2], strict=True)]


TOOL = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paint",
        "parameters": {"type": "object", "properties": {"colour": {"type": "string"}}, "required": ["colour"]},
    },
}
VISIT = {
    "type": "function",
    "function": {
        "name": "visit",
        "description": "Go",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "minLength": 1}},
            "required": ["city"],
        },
    },
}


def painting(arguments):
    call = {"id": "c0", "type": "function", "function": {"name": "paint", "arguments": arguments}}
    return [
        user("Paint the wall red."),
        assistant(None, tool_calls=[call]),
        {"role": "tool", "tool_call_id": "c0", "content": "ok"},
        assistant("The wall is red."),
    ]


def test_arguments_as_text_give_the_ids_of_objects(load, make_tokenizer):
    objects = load({"messages": painting({"colour": "red"}), "tools": [TOOL]})[0]
    texts = load({"messages": painting('{"colour": "red"}'), "tools": json.dumps([TOOL])})[0]
    renderer = Renderer(make_tokenizer(CALLS))
    assert renderer.render(texts).ids.tolist() == renderer.render(objects).ids.tolist()
    assert learned(renderer, texts)[0] == '<call>paint {"colour": "red"}</call><|im_end|>'
    assert content_hash(texts) == content_hash(objects)
    assert PARSED in texts.notes and PARSED not in objects.notes


def test_nulls_that_parquet_adds_are_not_learned(load, make_tokenizer):
    def row(name, arguments):
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        return {"messages": [user("Do it."), assistant("", tool_calls=[call])], "tools": [TOOL, VISIT]}

    rows = [row("paint", {"colour": "red"}), row("visit", {"city": "Rome"})]
    renderer = Renderer(make_tokenizer(CALLS))
    padded, plain = load(*rows, name="data.parquet"), load(*rows)
    for columnar, record in zip(padded, plain, strict=True):
        # Parquet orders keys by its schema: the texts are compared as JSON.
        assert columnar.fields["tools"] == record.fields["tools"] and ABSENT in columnar.notes
        assert learned(renderer, columnar) == learned(renderer, record)
        assert "null" not in renderer.prompt_text(columnar)


def test_sharegpt_is_read_by_its_own_names_or_by_the_recipes(load, make_tokenizer):
    turns = [("system", "Be brief."), ("human", "Colour?"), ("gpt", "red")]
    sharegpt = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    own = {"conversations": [{"speaker": role, "says": text} for role, text in turns]}
    as_text = {"conversations": json.dumps(own["conversations"])}
    names = {"messages": "conversations", "role": "speaker", "content": "says"}
    expected = [system("Be brief."), user("Colour?"), assistant("red")]
    for row, columns in (
        (sharegpt, {"messages": "conversations"}),
        (sharegpt, {"messages": "conversations", "role": "from", "content": "value"}),
        (own, names),
        (as_text, names),
    ):
        (record,) = load(row, columns=columns)
        assert record.shape == "messages" and record.fields["messages"] == expected
        assert learned(Renderer(make_tokenizer()), record) == ["red<|im_end|>"]


def test_names_of_keys_are_names_of_columns_where_no_messages_are(load):
    row = {"q": "2+2?", "a": "4", "body": "sums"}
    (record,) = load(row, columns={"prompt": "q", "completion": "a", "content": "body"})
    assert record.fields == {"prompt": "2+2?", "completion": "4", "content": "sums"}
    with pytest.raises(DataError, match="takes role from `who`, which is missing"):
        load(row, columns={"prompt": "q", "completion": "a", "role": "who"})


def test_calls_and_observations_of_sharegpt_are_rendered(load, make_tokenizer):
    call = json.dumps({"name": "paint", "arguments": {"colour": "red"}})
    turns = [("human", "Paint it."), ("function_call", call), ("observation", "ok"), ("gpt", "Done.")]
    row = {"messages": [{"from": role, "value": text} for role, text in turns], "tools": json.dumps([TOOL])}
    (record,) = load(row)
    assert [message["role"] for message in record.fields["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert LEGACY in record.notes
    targets = learned(Renderer(make_tokenizer(CALLS)), record)
    assert targets == ['<call>paint {"colour": "red"}</call><|im_end|>', "Done.<|im_end|>"]


# As old GLM models: any role is written between the marks, and only some of these are tokens.
MARKS = """{% for message in messages %}<|{{ message.role }}|>
{{ message.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
# A template that writes the messages of a role `function` and leaves those of `tool` out.
FUNCTIONS = """{% for message in messages %}{% if message.role in ('user', 'assistant', 'function') %}\
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
DEVELOPER = """{% for message in messages %}{% if message.role == 'system' %}\
{{ raise_exception('no system') }}{% endif %}\
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.mark.parametrize(
    ("template", "written", "role"),
    [
        (MARKS, "observation", "<|observation|>"),
        (MARKS, "ipython", "<|tool|>"),
        (CALLS, "observation", "<|im_start|>tool"),
        (CALLS, "Function", "<|im_start|>tool"),
        (FUNCTIONS, "function", "<|im_start|>function"),
        (DEVELOPER, "developer", "<|im_start|>developer"),
        (CALLS, "developer", "<|im_start|>system"),
    ],
)
def test_a_template_gets_the_name_of_a_role_that_it_knows(load, make_tokenizer, template, written, role):
    tokenizer = make_tokenizer(template)
    tokenizer.add_special_tokens(
        {"extra_special_tokens": ["<|observation|>", "<|user|>", "<|assistant|>", "<|im_end|>"]}
    )
    if written == "developer":
        messages = [{"role": written, "content": "20 degrees"}, user("Weather?"), assistant("Warm.")]
    else:
        messages = [
            user("Weather?"),
            assistant("I look."),
            {"role": written, "content": "20 degrees"},
            assistant("Warm."),
        ]
    (record,) = load({"messages": messages})
    assert f"{role}\n20 degrees" in Renderer(tokenizer).prompt_text(record)


def test_the_legacy_form_of_openai_is_rendered(load, make_tokenizer):
    call = {"name": "paint", "arguments": '{"colour": "red"}'}
    messages = [
        user("Paint it."),
        assistant(None, function_call=call),
        {"role": "function", "name": "paint", "content": "ok"},
        assistant("Done."),
    ]
    (record,) = load({"messages": messages, "functions": [TOOL["function"]]})
    assert record.fields["tools"] == [TOOL]
    renderer = Renderer(make_tokenizer(CALLS))
    assert "<tool>" in renderer.prompt_text(record)
    assert learned(renderer, record)[0] == '<call>paint {"colour": "red"}</call><|im_end|>'


@pytest.mark.parametrize(
    "mark", [{"weight": 0}, {"train": False}, {"loss": False}, {"training": "false"}, {"masked": True}]
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
def test_a_label_beside_any_single_answer_is_read(write, tmp_path, make_tokenizer, shape):
    def row(index):
        question, answer = f"Number {index}?", f"It is {index}."
        forms = {
            "prompt_completion": {"prompt": question, "completion": answer},
            "messages": {"messages": [user(question), assistant(answer)]},
            "text": {"text": f"{question} {answer}"},
        }
        return {**forms[shape], "label": index % 2 == 0}

    settings = SimpleNamespace(train=write(*map(row, range(8))), validation=None, test=None, split_seed=0)
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
        ({"Body": "a", "Question": "b", "Answer": True}, "`completion` must be a string"),
    ):
        with pytest.raises(DataError, match=words):
            load(row, columns=columns)


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


def test_a_text_that_is_read_elsewhere_is_no_warning(report_of):
    row = {"messages": [user("What is the colour of the wall?"), assistant("red")]}
    report = report_of({**row, "prompt": "What is the colour of the wall?", "choices": ["a b c d"], "id": "x"})
    assert report.unread == {"prompt": {"records": 1, "text": False}}
    assert report_of({**row, "history": [["another question was asked", "yes"]]}).unread["history"]["text"]
    assert report_of({**row, "note": "今天天气很好"}).unread["note"]["text"]
    assert not report_of({**row, "url": "https://example.org/a?b=c", "at": "2024-01-01 10:00 UTC"}).unread["at"]["text"]


def test_the_names_in_a_recipe_are_read(tmp_path):
    (tmp_path / "reward.py").write_text('def score(answer): return answer.record.fields["gold_steps"]\n')
    settings = {"reward": [{"reward": {"kind": "code", "column": "checks"}}, {"reward": {"kind": "reward.py"}}]}
    names = names_in(settings, tmp_path)
    assert {"checks", "gold_steps"} <= names and "column" not in names


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
    row = {"answers": ["red", "blue"], "marks": [0.5, [1]], "system": "Be brief."}
    (record,) = load({**row, "prompt": "Colour?"})
    assert (record.fields["answers"], record.fields["marks"]) == (["red", "blue"], [0.5, [1]])
    assert record.fields["prompt"] == [system("Be brief."), user("Colour?")]
