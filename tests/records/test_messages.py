import json

import numpy
import pytest

from luthier.errors import DataError
from luthier.records.calls import (
    FLAT,
    JSON_TOOLS,
    LEGACY,
    LEGACY_TOOLS,
    NO_ARGUMENTS,
    PARSED,
    UNPARSED,
    UNREAD_CALL,
    for_server,
    read_tools,
)
from luthier.records.conversion import Conversion
from luthier.records.messages import (
    CONTEXT,
    DEVELOPERS,
    MARKED_OTHERS,
    NAMED_ROLES,
    OWN_KEYS,
    PARTS,
    THINKING,
    TOOL_TEXT,
    VALUES,
    conversation,
)
from luthier.records.nulls import ABSENT, KEPT, schemas_of

ASK = {"role": "user", "content": "Paint it."}


def read(*messages, **options):
    """The messages in the canonical form, and the notes."""
    conversion = Conversion(**options)
    return conversation(messages, "data.jsonl:1: messages", conversion), list(conversion.notes)


def calling(arguments, **more):
    function = {"name": "paint", "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}], **more}


def arguments_of(message, **options):
    (read_message,), notes = read(message, **options)
    return read_message["tool_calls"][0]["function"]["arguments"], notes


def paint_tool(**properties):
    parameters = {"type": "object", "properties": properties, "required": []}
    return {"type": "function", "function": {"name": "paint", "description": "Paint", "parameters": parameters}}


def test_a_canonical_conversation_is_left_as_it_is():
    messages = [
        {"role": "system", "content": "Be brief."},
        ASK,
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Red?",
            "tool_calls": calling({"a": 1})["tool_calls"],
        },
        {"role": "tool", "content": "ok", "tool_call_id": "c1", "name": "paint"},
        {"role": "assistant", "content": "Done."},
    ]
    assert read(*messages) == (messages, [])


@pytest.mark.parametrize("columnar", [False, True])
@pytest.mark.parametrize(
    ("written", "arguments", "note"),
    [
        ({"colour": "red"}, {"colour": "red"}, None),
        ('{"colour": "red", "coats": 2}', {"colour": "red", "coats": 2}, PARSED),
        ('"{\\"colour\\": \\"red\\"}"', {"colour": "red"}, PARSED),
        (' {"colour": {"name": "café"}} ', {"colour": {"name": "café"}}, PARSED),
        ("", {}, NO_ARGUMENTS),
        ("null", {}, NO_ARGUMENTS),
        (None, {}, NO_ARGUMENTS),
        ("{}", {}, PARSED),
        ("colour red", "colour red", UNPARSED),
        ('{"colour": ', '{"colour": ', UNPARSED),
        ('{"colour": NaN}', '{"colour": NaN}', UNPARSED),
        ("[1, 2]", "[1, 2]", UNPARSED),
        ("7", "7", UNPARSED),
    ],
)
def test_arguments_are_objects_wherever_their_text_is_one(written, arguments, note, columnar):
    assert arguments_of(calling(written), columnar=columnar) == (arguments, [note] if note else [])


def test_parallel_calls_keep_their_order_ids_and_keys():
    calls = [
        {"id": "c1", "type": "function", "function": {"arguments": '{"a": 1}', "name": "one"}},
        {"id": "c2", "type": "function", "function": {"name": "two", "arguments": {"b": None}}},
    ]
    (message,), notes = read({"role": "assistant", "content": None, "tool_calls": calls})
    assert message["content"] == ""
    assert [list(call["function"]) for call in message["tool_calls"]] == [["arguments", "name"], ["name", "arguments"]]
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == [{"a": 1}, {"b": None}]
    assert [call["id"] for call in message["tool_calls"]] == ["c1", "c2"]
    assert notes == [PARSED, KEPT]


@pytest.mark.parametrize(
    "calls",
    [
        '[{"type": "function", "function": {"name": "paint", "arguments": {"a": 1}}}]',
        ['{"type": "function", "function": {"name": "paint", "arguments": {"a": 1}}}'],
        {"type": "function", "function": {"name": "paint", "arguments": {"a": 1}}},
        [{"name": "paint", "arguments": {"a": 1}}],
        [{"name": "paint", "parameters": '{"a": 1}', "function": None}],
    ],
)
def test_calls_in_other_forms_become_a_list_of_functions(calls):
    (message,), _ = read({"role": "assistant", "content": "", "tool_calls": calls})
    expected = [{"type": "function", "function": {"name": "paint", "arguments": {"a": 1}}}]
    assert message["tool_calls"] == expected


@pytest.mark.parametrize("calls", ["paint(red)", ["paint"], [7], 7])
def test_calls_that_are_none_are_refused(calls):
    with pytest.raises(DataError, match=r"messages\[0\]: `tool_calls` must be a list of calls"):
        read({"role": "assistant", "content": "", "tool_calls": calls})


@pytest.mark.parametrize("nothing", ["[]", "", "null", [], None])
def test_a_message_without_calls_has_no_key_for_them(nothing):
    assert read({"role": "assistant", "content": "Hi", "tool_calls": nothing})[0] == [
        {"role": "assistant", "content": "Hi"}
    ]


PADDED = {"colour": "red", "coats": None, "place": {"room": None, "wall": [{"side": "left", "mark": None}, None]}}
BARE = {"colour": "red", "place": {"wall": [{"side": "left"}, None]}}


def test_nulls_of_a_columnar_file_leave_arguments_at_any_depth():
    assert arguments_of(calling(PADDED), columnar=True) == (BARE, [ABSENT])
    assert arguments_of(calling(PADDED)) == (PADDED, [KEPT])


def test_an_object_without_keys_stays_one():
    assert arguments_of(calling({"colour": None}), columnar=True) == ({}, [ABSENT])


def test_nulls_inside_a_text_are_the_users_in_any_file():
    text = '{"colour": null}'
    assert arguments_of(calling(text), columnar=True) == ({"colour": None}, [PARSED, KEPT])


@pytest.mark.parametrize("columnar", [False, True])
def test_the_schema_of_the_tool_decides_about_nulls_where_it_speaks(columnar):
    tool = paint_tool(colour={"type": ["string", "null"]}, place={"type": "object", "properties": {"room": {}}})
    tool["function"]["parameters"]["required"] = ["colour"]
    tool["function"]["parameters"]["properties"]["place"]["required"] = ["room"]
    call = calling({"colour": None, "city": None, "place": {"room": None, "street": None}})
    arguments, notes = arguments_of(call, columnar=columnar, schemas=schemas_of([tool]))
    assert arguments == {"colour": None, "place": {"room": None}}
    assert set(notes) == {ABSENT, KEPT}


def test_an_optional_argument_is_null_in_json_and_absent_in_a_columnar_file():
    schemas = schemas_of([paint_tool(colour={"type": "string"}, coats={"type": "integer"})])
    assert arguments_of(calling({"colour": "red", "coats": None}), schemas=schemas)[0] == {
        "colour": "red",
        "coats": None,
    }
    assert arguments_of(calling({"colour": "red", "coats": None}), schemas=schemas, columnar=True)[0] == {
        "colour": "red"
    }


def test_a_schema_that_allows_further_arguments_says_nothing_about_them():
    tool = paint_tool(colour={"type": "string"})
    tool["function"]["parameters"]["additionalProperties"] = True
    assert arguments_of(calling({"city": None}), schemas=schemas_of([tool]))[0] == {"city": None}


def test_tools_lose_the_nulls_of_a_columnar_file_at_any_depth():
    padded = paint_tool(
        colour={"type": "string", "enum": ["red", None], "items": None, "default": None, "const": {"a": None, "b": 1}},
        city=None,
        coats={"type": None, "description": None},
        default={"type": "string", "description": None},
    )
    padded["strict"] = None
    columnar = Conversion(columnar=True)
    (tool,) = read_tools({"tools": [padded]}, columnar)
    assert tool["function"]["parameters"]["properties"] == {
        "colour": {"type": "string", "enum": ["red", None], "const": {"b": 1}},
        "default": {"type": "string"},
    }
    assert "strict" not in tool and list(columnar.notes) == [ABSENT]
    # In JSON a default of null is a value, and an argument that accepts anything has an empty schema.
    (tool,) = read_tools({"tools": [padded]}, Conversion())
    properties = tool["function"]["parameters"]["properties"]
    assert properties["colour"]["default"] is None and properties["colour"]["const"] == {"a": None, "b": 1}
    assert properties["coats"] == {} and "city" not in properties


@pytest.mark.parametrize("nothing", [None, "", "null", "[]", []])
def test_no_tools_stay_none(nothing):
    assert not read_tools({"tools": nothing}, Conversion())


def test_tools_in_other_forms_become_a_list_of_functions():
    tool = paint_tool(colour={"type": "string", "default": None})
    for written, notes in (
        (json.dumps([tool]), [JSON_TOOLS]),
        (str([tool]), [JSON_TOOLS]),
        ([json.dumps(tool)], [JSON_TOOLS]),
        (tool, []),
        ([tool["function"]], [FLAT]),
        ([{"type": "function", **tool["function"]}], [FLAT]),
    ):
        conversion = Conversion()
        assert read_tools({"tools": written}, conversion) == [tool]
        assert list(conversion.notes) == notes
    legacy = Conversion()
    assert read_tools({"functions": [tool["function"]]}, legacy) == [tool]
    assert list(legacy.notes) == [LEGACY_TOOLS]
    assert read_tools({"tools": "hammer, saw"}, Conversion()) == "hammer, saw"


@pytest.mark.parametrize("name", ["thinking", "reasoning", "thought"])
def test_thoughts_under_any_name_are_reasoning_content(name):
    (message,), notes = read({"role": "assistant", "content": None, name: "It is red."})
    assert message == {"role": "assistant", "content": "", "reasoning_content": "It is red."}
    assert notes == [THINKING]


def test_a_second_thought_that_differs_keeps_its_name():
    (message,), _ = read({"role": "assistant", "content": "red", "reasoning_content": "a", "thinking": "b"})
    assert (message["reasoning_content"], message["thinking"]) == ("a", "b")
    (message,), _ = read({"role": "assistant", "content": "red", "reasoning": {"effort": "high"}})
    assert message["reasoning"] == {"effort": "high"} and "reasoning_content" not in message


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "a"}, {"type": "text", "text": " b"}],
        [{"type": "input_text", "text": "a"}, {"type": "output_text", "text": " b"}],
        [{"text": "a"}, " b"],
        ["a", " b"],
        {"type": "text", "text": "a b"},
        [{"type": "text", "text": "a b", "image_url": None}],
        numpy.array(["a", " b"], dtype=object),
    ],
)
@pytest.mark.parametrize("role", ["user", "assistant", "tool", "system"])
def test_texts_in_parts_are_joined(content, role):
    assert read({"role": role, "content": content}) == ([{"role": role, "content": "a b"}], [PARTS])


def test_thoughts_in_parts_are_reasoning_content():
    content = [{"type": "thinking", "thinking": "Red?"}, {"type": "text", "text": "red"}]
    assert read({"role": "assistant", "content": content})[0] == [
        {"role": "assistant", "content": "red", "reasoning_content": "Red?"}
    ]


@pytest.mark.parametrize("kind", ["image_url", "image", "input_audio", "video", "tool_use", "refusal"])
def test_other_parts_are_refused_by_name(kind):
    with pytest.raises(DataError, match=rf"messages\[0\]: .*a part of the type `{kind}`"):
        read({"role": "user", "content": [{"type": "text", "text": "Look:"}, {"type": kind, kind: "x"}]})
    with pytest.raises(DataError, match="must be text, found int"):
        read({"role": "user", "content": 4})


def test_what_a_tool_returns_is_written_as_json():
    for content, text in (({"t": 20, "é": None}, '{"t": 20, "é": null}'), ([1, "a"], '[1, "a"]'), (7, "7")):
        assert read({"role": "tool", "content": content}) == ([{"role": "tool", "content": text}], [TOOL_TEXT])
    assert read({"role": "tool", "content": None})[0] == [{"role": "tool", "content": ""}]
    events = [{"type": "event", "id": 1}]
    assert read({"role": "tool", "content": events})[0][0]["content"] == '[{"type": "event", "id": 1}]'
    with pytest.raises(DataError, match="`image_url`"):
        read({"role": "tool", "content": [{"type": "image_url", "image_url": "x"}]})


@pytest.mark.parametrize(
    ("written", "role"),
    [
        ("human", "user"),
        ("User", "user"),
        ("GPT", "assistant"),
        ("model", "assistant"),
        ("bot", "assistant"),
        ("CHATBOT", "assistant"),
        (" Assistant ", "assistant"),
        ("System", "system"),
        ("observation", "tool"),
        ("function_response", "tool"),
        ("function-response", "tool"),
        ("tool response", "tool"),
        ("function", "tool"),
        ("ipython", "tool"),
    ],
)
def test_roles_have_one_name(written, role):
    for message in ({"role": written, "content": "x"}, {"from": written, "value": "x"}):
        (message,), notes = read(message)
        assert (message["role"], message["content"]) == (role, "x") and NAMED_ROLES in notes
        # Only the names of a tool's messages differ from template to template.
        assert message.get("written_role") == (written if role == "tool" else None)
        assert set(message) <= {"role", "content", *OWN_KEYS}
        assert (VALUES in notes) == (len(notes) == 2)


def test_roles_of_the_users_own_stay():
    messages, (note,) = read({"role": "Critic", "content": "x"})
    assert messages == [{"role": "Critic", "content": "x"}] and "`Critic`" in note


def test_a_developer_speaks_as_the_system_unless_there_is_one():
    developer = {"role": "developer", "content": "Be brief."}
    assert read(developer, ASK) == (
        [{"role": "system", "content": "Be brief.", "written_role": "developer"}, ASK],
        [DEVELOPERS],
    )
    both = [{"role": "system", "content": "You are a bot."}, developer, ASK]
    assert read(*both) == (both, [])


def test_one_file_may_mix_both_spellings_and_a_columnar_file_fills_the_others_with_null():
    messages, _ = read(
        {"from": "human", "value": "Hi", "role": None, "content": None},
        {"from": None, "value": None, "role": "assistant", "content": "Hello"},
    )
    assert messages == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize("role", ["function_call", "tool_call", "Function-Call"])
def test_a_turn_of_sharegpt_that_calls_a_tool_has_tool_calls(role):
    call = '{"name": "paint", "arguments": {"colour": "red"}}'
    (message,), notes = read({"from": role, "value": call})
    assert message["role"] == "assistant" and message["content"] == "" and LEGACY in notes and FLAT not in notes
    assert message["tool_calls"] == calling({"colour": "red"})["tool_calls"]
    (message,), _ = read({"from": role, "value": f"[{call}, {call}]"})
    assert len(message["tool_calls"]) == 2
    (message,), notes = read({"from": role, "value": "paint(red)"})
    assert message == {"role": "assistant", "content": "paint(red)"} and UNREAD_CALL in notes


def test_the_legacy_call_of_openai_is_a_tool_call():
    call = {"name": "paint", "arguments": '{"colour": "red"}'}
    messages, notes = read(
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "paint", "content": "ok"},
    )
    assert messages == [
        calling({"colour": "red"}),
        {"role": "tool", "content": "ok", "name": "paint"} | {"written_role": "function"},
    ]
    assert notes == [LEGACY, PARSED, NAMED_ROLES]


@pytest.mark.parametrize(
    ("mark", "learned"),
    [
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"weight": "0"}, False),
        ({"train": False}, False),
        ({"training": "false"}, False),
        ({"loss": False}, False),
        ({"masked": True}, False),
        ({"masked": 1}, False),
        ({"learn": False}, False),
        ({"weight": 1, "train": False}, False),
        ({"weight": 1}, True),
        ({"weight": "1.0"}, True),
        ({"train": "True"}, True),
        ({"masked": False}, True),
        ({"loss": None}, True),
    ],
)
def test_marks_say_whether_an_answer_is_learned(mark, learned):
    (message,), notes = read({"role": "assistant", "content": "red", **mark})
    assert message == {"role": "assistant", "content": "red"} | ({} if learned else {"learn": False})
    assert notes == ([] if learned else [CONTEXT])


def test_marks_of_other_messages_leave_and_are_counted_if_they_ask_for_more():
    assert read({**ASK, "weight": 0, "train": False}) == ([ASK], [])
    assert read({**ASK, "train": True}) == ([ASK], [MARKED_OTHERS])


@pytest.mark.parametrize("weight", [0.5, 2, "much", [0]])
def test_other_weights_are_refused_and_other_numbers_are_no_marks(weight):
    with pytest.raises(DataError, match=r"messages\[0\]: the weight of a message must be 0"):
        read({"role": "assistant", "content": "red", "weight": weight})
    assert read({"role": "assistant", "content": "red", "loss": weight})[0][0]["loss"] == weight


def test_keys_inside_messages_have_the_users_names():
    inner = {"role": "speaker", "content": "says"}
    messages, notes = read({"speaker": "human", "says": "Hi"}, {"speaker": "bot", "says": "Hello"}, inner=inner)
    assert messages == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert notes == [NAMED_ROLES]
    with pytest.raises(DataError, match="found who, says") as caught:
        read({"who": "human", "says": "Hi"}, inner=inner)
    assert "role: speaker" in caught.value.hint


def test_arrays_and_maps_of_arrow_are_lists_and_objects():
    calls = numpy.array([{"function": {"name": "paint", "arguments": [("colour", "red")]}}], dtype=object)
    (message,), _ = read({"role": "assistant", "content": "", "tool_calls": calls})
    assert message["tool_calls"] == [{"function": {"name": "paint", "arguments": {"colour": "red"}}}]


def test_servers_get_arguments_as_text():
    messages, _ = read(ASK, calling({"colour": "é"}))
    sent = for_server(messages)
    assert sent[1]["tool_calls"][0]["function"]["arguments"] == '{"colour": "é"}'
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"colour": "é"}
    assert sent[0] == ASK
