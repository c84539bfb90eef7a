"""Conversations in the words of ShareGPT, OpenAI and others, with tools: what is rendered and learned of them."""

import json

import pytest

from luthier.data.identity import content_hash
from luthier.data.render import Renderer
from luthier.errors import DataError
from luthier.records.calls import LEGACY, PARSED
from luthier.records.nulls import ABSENT
from support.talk import assistant, learned, system, user

CALLS = """{% for tool in tools or [] %}<tool>{{ tool | tojson }}</tool>{% endfor %}{% for message in messages %}\
<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}<call>{{ call.function.name }} \
{{ call.function.arguments | tojson }}</call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

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
