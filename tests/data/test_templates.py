"""Tool calls, thoughts and odd turns, under tiny templates of every kind: what is a target, and what is said."""

import json

import numpy
import pytest

from luthier.chat.spans import (
    ALTERED,
    BEGUN,
    CONTROL,
    EMPTY,
    INDENTED,
    MINGLED,
    NAMED,
    OPENING,
    PYTHON,
    RENUMBERED,
    SCAFFOLD,
    UNCALLED,
    UNCLOSED,
    UNREASONED,
    UNSPOKEN,
)
from luthier.conformance.chat_template import check_template
from luthier.data.render import Renderer
from luthier.errors import DataError, ModelError
from luthier.types import Record

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "paint",
            "description": "Paints a wall.",
            "parameters": {"type": "object", "properties": {"colour": {"type": "string", "description": "Of paint."}}},
        },
    }
]


def turns(calls, content="{{ m.content or '' }}", end="<|im_end|>", header="<|im_start|>{{ m.role }}\n"):
    """A template: one turn for each message, with text and calls in the order of the argument."""
    body = content if calls is None else calls.replace("CONTENT", content)
    schema = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    prompt = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    return schema + "{% for m in messages %}" + header + body + end + "\n{% endfor %}" + prompt


EACH = "{% for c in m.tool_calls or [] %}"
OBJECT = turns(
    "CONTENT"
    + EACH
    + '<call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}</call>{% endfor %}'
)
CALLS_FIRST = turns(EACH + "<call>{{ c.function | tojson }}</call>{% endfor %}CONTENT")
VERBATIM = turns("CONTENT" + EACH + "<call>{{ c.function.name }} {{ c.function.arguments }}</call>{% endfor %}")
JOINED = turns("CONTENT" + EACH + "{{ '<call>' + c.function.name + c.function.arguments + '</call>' }}{% endfor %}")
READ = turns(
    "CONTENT"
    + EACH
    + "<call>{{ c.function.name }}{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}</{{ k }}>"
    "{% endfor %}</call>{% endfor %}"
)
EITHER = turns(
    "CONTENT" + EACH + "<call>{{ c.function.name }}{% if c.function.arguments is string %}{{ c.function.arguments }}"
    "{% else %}{{ c.function.arguments | tojson }}{% endif %}</call>{% endfor %}"
)
STRICT_CONTENT = turns(
    "{% if '</think>' in m.content %}{% endif %}CONTENT" + EACH + "<call>{{ c.function | tojson }}</call>{% endfor %}"
)
NO_CONTENT = turns(
    "{% if m.tool_calls %}" + EACH + "<call>{{ c.function | tojson }}</call>{% endfor %}{% else %}CONTENT{% endif %}"
)
# The tool's answer stands in the model's turn, behind the call and before the text, as one family writes it.
INSIDE = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}</s>"
    "{% elif m.role == 'assistant' %}<|assistant|>{% for c in m.tool_calls or [] %}"
    "<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
    "{% for n in messages[loop.index:] if n.role == 'tool' and m.tool_calls %}"
    "<answer>{{ n.content }}</answer>{% endfor %}{{ m.content or '' }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALLING = {
    "object": OBJECT,
    "calls first": CALLS_FIRST,
    "verbatim": VERBATIM,
    "joined": JOINED,
    "read": READ,
    "either": EITHER,
    "strict content": STRICT_CONTENT,
    "no content": NO_CONTENT,
    "inside": INSIDE,
}


def user(text):
    return {"role": "user", "content": text}


def answer(text, *arguments, **more):
    message = {"role": "assistant", "content": text, **more}
    calls = [
        {"type": "function", "id": f"call0000{n}", "function": {"name": "paint", "arguments": given}}
        for n, given in enumerate(arguments)
    ]
    return {**message, "tool_calls": calls} if calls else message


def reply(text, n=0, **more):
    return {"role": "tool", "tool_call_id": f"call0000{n}", "content": text, **more}


def talk(*messages, **fields):
    return Record("r1", "messages", {"messages": list(messages), **fields}, "data.jsonl:1")


def targets(renderer, record):
    """The text of each run of targets, and the notes."""
    rendering = renderer.explain(record)
    row = rendering.row
    flags = row.streams["weights"].values != 0
    borders = numpy.flatnonzero(numpy.diff(numpy.concatenate([[False], flags, [False]])))
    decode = renderer.tokenizer.decode
    texts = [decode(row.ids[a:b].tolist()) for a, b in zip(borders[::2], borders[1::2], strict=True)]
    return texts, rendering.notes


PAINTED = [user("Paint it red."), answer(None, {"colour": "red"}), reply("RESULT red"), answer("It is red.")]


@pytest.mark.parametrize("family", CALLING)
def test_a_template_that_writes_calls_is_right_in_every_conversation(make_tokenizer, family):
    verdicts = {
        verdict.kind: (verdict.outcome, verdict.reason) for verdict in check_template(make_tokenizer(CALLING[family]))
    }
    unknown = {kind for kind in verdicts if "thoughts" in kind}
    assert {kind: verdict for kind, verdict in verdicts.items() if verdict[0] != "right" and kind not in unknown} == {
        kind: verdict for kind, verdict in verdicts.items() if kind == "empty turn" and verdict[0] == "refused"
    }


@pytest.mark.parametrize(
    ("family", "written"),
    [
        ("object", '<call>{"name": "paint", "arguments": {"colour": "red"}}</call>'),
        ("verbatim", '<call>paint {"colour": "red"}</call>'),
        ("joined", '<call>paint{"colour": "red"}</call>'),
        ("read", "<call>paint<colour>red</colour></call>"),
        ("either", '<call>paint{"colour": "red"}</call>'),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_arguments_are_an_object_or_text_as_the_template_wants(make_tokenizer, family, written, as_text):
    renderer = Renderer(make_tokenizer(CALLING[family]))
    arguments = json.dumps({"colour": "red"}) if as_text else {"colour": "red"}
    record = talk(PAINTED[0], answer("", arguments), *PAINTED[2:], tools=TOOLS)
    texts, notes = targets(renderer, record)
    assert texts == [written + "<|im_end|>", "It is red.<|im_end|>"] and notes == ()
    assert renderer.render(record).ids.tolist() == renderer.render(talk(*PAINTED, tools=TOOLS)).ids.tolist()


def test_arguments_that_no_program_could_read_back_are_refused(make_tokenizer):
    garbled = turns("CONTENT" + EACH + "{{ c.function.arguments | string | tojson }}{% endfor %}")
    with pytest.raises(DataError, match="no program could read back"):
        Renderer(make_tokenizer(garbled)).render(talk(*PAINTED))


@pytest.mark.parametrize("arguments", [{}, {"n": 2}, {"a": [1, {"b": 'é "q"\n'}], "ok": True}, {"colour": ""}, [1, 2]])
@pytest.mark.parametrize("family", ["object", "calls first", "verbatim", "either", "no content"])
@pytest.mark.parametrize("content", ["", "Let me see."])
def test_any_arguments_are_targets_to_the_end_of_the_turn(make_tokenizer, family, arguments, content):
    renderer = Renderer(make_tokenizer(CALLING[family]))
    texts, _ = targets(renderer, talk(user("Paint."), answer(content, arguments), reply("RESULT"), answer("Done.")))
    call, last = texts
    assert last == "Done.<|im_end|>" and call.endswith("<|im_end|>") and "RESULT" not in call
    assert json.dumps(arguments, ensure_ascii=False) in call and "paint" in call
    if family != "no content":
        assert call.startswith("<call>" if family == "calls first" or not content else content)


def test_an_end_of_turn_that_is_no_control_token_ends_a_call_too(make_tokenizer):
    worded = CALLING["object"].replace("<|im_end|>", "(end)")
    texts, notes = targets(Renderer(make_tokenizer(worded)), talk(*PAINTED))
    assert len(texts) == 2 and all(text.removesuffix("</s>").endswith("(end)") for text in texts) and notes == ()


@pytest.mark.parametrize("content", ["Let me see.", None])
def test_a_tools_answer_within_the_models_turn_is_no_target(make_tokenizer, content):
    renderer = Renderer(make_tokenizer(INSIDE))
    texts, notes = targets(renderer, talk(PAINTED[0], answer(content, {"colour": "red"}), *PAINTED[2:]))
    spoken = [f"{content}</s>"] if content else []
    assert texts == ['<call>paint {"colour": "red"}</call>', *spoken, "It is red.</s>"]
    assert notes == (() if content else (UNCLOSED,))
    assert not any("RESULT" in text or "answer" in text for text in texts)


def test_calls_that_a_template_mixes_with_other_messages_are_context(make_tokenizer):
    mixed = turns(EACH + "<call>{{ messages[0].content }} {{ c.function | tojson }}</call>{% endfor %}CONTENT")
    texts, notes = targets(Renderer(make_tokenizer(mixed)), talk(*PAINTED))
    assert texts == ["It is red.<|im_end|>"] and notes == (MINGLED,)
    with pytest.raises(DataError, match="last answer"):
        Renderer(make_tokenizer(mixed)).render(talk(*PAINTED[:2]))


def test_others_may_have_written_the_same_words(make_tokenizer):
    renderer = Renderer(make_tokenizer(OBJECT))
    record = talk(
        user("red"), answer("red", {"colour": "red"}), reply("red"), answer("red"), user("paint"), answer("name")
    )
    texts, notes = targets(renderer, record)
    assert (
        texts
        == [
            'red<call>{"name": "paint", "arguments": {"colour": "red"}}</call><|im_end|>',
            "red<|im_end|>",
            "name<|im_end|>",
        ]
        and notes == ()
    )


@pytest.mark.parametrize("word", ["ZQANSWERQZ", "ZQTHOUGHTQZ", "ZQKEYQZ", "7091", "zqword", "ZXANSWERXZ0"])
def test_texts_may_hold_the_words_that_locate_answers(make_tokenizer, word):
    renderer = Renderer(make_tokenizer(OBJECT))
    called = answer(word, {word: word}, reasoning_content=word)
    texts, _ = targets(renderer, talk(user(word), called, reply(word), answer(word)))
    call = f'<call>{{"name": "paint", "arguments": {{"{word}": "{word}"}}}}</call>'
    assert texts == [f"{word}{call}<|im_end|>", f"{word}<|im_end|>"]


def test_a_conversation_may_end_in_a_call_or_hold_several(make_tokenizer):
    renderer = Renderer(make_tokenizer(OBJECT))
    record = talk(*PAINTED, user("And?"), answer(None, {"colour": "blue"}, {"colour": "grey"}))
    texts, _ = targets(renderer, record)
    assert texts[-1].count("<call>") == 2 and texts[-1].endswith('{"colour": "grey"}}</call><|im_end|>')
    assert renderer.prompt_text(record).endswith("And?<|im_end|>\n<|im_start|>assistant\n")


def test_text_and_calls_that_a_template_leaves_out_are_said(make_tokenizer):
    spoken = talk(PAINTED[0], answer("Let me see.", {"colour": "red"}), *PAINTED[2:])
    texts, notes = targets(Renderer(make_tokenizer(NO_CONTENT)), spoken)
    assert texts[0].startswith("<call>") and notes == (UNSPOKEN,)
    silent = Renderer(make_tokenizer(turns(None)))
    texts, notes = targets(silent, spoken)
    assert texts == ["It is red.<|im_end|>"] and notes == (UNCALLED,)
    with pytest.raises(DataError, match="last answer"):
        silent.render(talk(*spoken.fields["messages"][:2]))


def test_none_is_never_written_as_a_word(make_tokenizer):
    worded = turns("{{ m.content }}" + EACH + "<call>{{ c.function | tojson }}</call>{% endfor %}")
    texts, _ = targets(Renderer(make_tokenizer(worded)), talk(*PAINTED))
    assert texts[0].startswith("<call>")


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_thoughts_go_under_the_key_that_the_template_reads(make_tokenizer, key):
    thoughtful = turns(
        "{% if m."
        + key
        + " %}<think>{{ m."
        + key
        + " }}</think>{% endif %}CONTENT"
        + EACH
        + "<call>{{ c.function | tojson }}</call>{% endfor %}"
    )
    renderer = Renderer(make_tokenizer(thoughtful))
    texts, notes = targets(renderer, talk(user("?"), answer("red", reasoning_content="It may be red.")))
    assert texts == ["<think>It may be red.</think>red<|im_end|>"] and notes == ()
    called = answer(None, {"colour": "red"}, reasoning_content="It may be red.")
    texts, notes = targets(renderer, talk(PAINTED[0], called, *PAINTED[2:]))
    assert texts[0].startswith("<think>It may be red.</think><call>") and texts[0].endswith("</call><|im_end|>")
    outcomes = {verdict.kind: verdict.outcome for verdict in check_template(renderer.tokenizer)}
    assert set(outcomes.values()) <= {"right", "refused"} and outcomes["thoughts and call"] == "right"


def test_thoughts_that_a_template_changes_are_no_target(make_tokenizer):
    loud = turns("{% if m.thinking %}<think>{{ m.thinking | upper }}</think>{% endif %}CONTENT")
    earlier = answer("red", reasoning_content="It may be.")
    texts, notes = targets(Renderer(make_tokenizer(loud)), talk(user("?"), earlier, user("?"), answer("blue")))
    assert texts == ["blue<|im_end|>"] and notes == (ALTERED,)


def test_the_empty_block_of_thoughts_before_a_call_is_context(make_tokenizer):
    scaffold = turns(
        "{% if m.role == 'assistant' %}<think></think>{% endif %}CONTENT"
        + EACH
        + "<call>{{ c.function | tojson }}</call>{% endfor %}"
    )
    texts, notes = targets(Renderer(make_tokenizer(scaffold)), talk(*PAINTED))
    assert [text[:6] for text in texts] == ["<call>", "It is "] and notes == (SCAFFOLD,)


def test_a_generation_prompt_that_opens_a_thought_before_a_call_is_left_out(make_tokenizer):
    opened = OBJECT.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
    renderer = Renderer(make_tokenizer(opened))
    texts, notes = targets(renderer, talk(*PAINTED))
    assert texts[0].startswith("<call>") and notes == (OPENING,)
    thinking = talk(user("?"), answer("Hm.\n</think>\n\nred"))
    kept = turns("{% if '</think>' in (m.content or '') and '<think>' not in m.content %}<think>\n{% endif %}CONTENT")
    kept = kept.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
    texts, notes = targets(Renderer(make_tokenizer(kept)), thinking)
    assert texts == ["Hm.\n</think>\n\nred<|im_end|>"] and notes == ()


def test_an_empty_turn_is_context(make_tokenizer):
    for family in ("chatml", "llama3", "gemma", "opened", "plain", OBJECT, INSIDE):
        renderer = Renderer(make_tokenizer(family))
        texts, notes = targets(renderer, talk(user("?"), answer(""), user("Really?"), answer("Yes.")))
        assert len(texts) == 1 and texts[0].strip().startswith("Yes.") and EMPTY in notes


def test_a_header_that_always_follows_is_no_target(make_tokenizer):
    always = (
        "<s><|start_header_id|>system<|end_header_id|>Be brief.<|eot_id|>{% for m in messages %}"
        "<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}<|eot_id|>{% endfor %}"
        "<|start_header_id|>assistant<|end_header_id|>"
    )
    renderer = Renderer(make_tokenizer(always))
    texts, notes = targets(renderer, talk(user("?"), answer("Yes."), user("Sure?"), answer("No.")))
    assert texts == ["Yes.<|eot_id|>", "No.<|eot_id|>"] and notes == ()
    assert renderer.end_id == renderer.tokenizer.convert_tokens_to_ids("<|eot_id|>")


def test_an_end_that_only_the_next_turn_writes_is_said(make_tokenizer):
    late = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '' if loop.first else '</s>' }}<|user|>{% else %}"
        "<|assistant|>{% endif %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    texts, notes = targets(
        Renderer(make_tokenizer(late)), talk(user("?"), answer("Yes."), user("Sure?"), answer("No."))
    )
    assert texts == ["Yes.", "No.</s>"] and notes == (UNCLOSED,)


def test_indentation_that_a_template_trims_is_said(make_tokenizer):
    record = talk(user("def f(x):"), answer("    return x\n"))
    texts, notes = targets(Renderer(make_tokenizer("llama3")), record)
    assert texts == ["return x<|eot_id|>"] and INDENTED in notes
    assert targets(Renderer(make_tokenizer("chatml")), record) == (["    return x\n<|im_end|>"], ())
    unindented = talk(user("?"), answer("\n\nYes.\n    No."))
    texts, notes = targets(Renderer(make_tokenizer("llama3")), unindented)
    assert texts == ["Yes.\n    No.<|eot_id|>"] and INDENTED not in notes


def test_a_bos_in_the_text_is_not_doubled(make_tokenizer):
    tokenizer = make_tokenizer(None)
    bare = Record("r1", "prompt_completion", {"prompt": "what is 3?", "completion": "42"}, "data.jsonl:1")
    begun = Record("r1", "prompt_completion", {"prompt": "<s>what is 3?", "completion": "42"}, "data.jsonl:1")
    renderer = Renderer(tokenizer, "{prompt} {completion}")
    assert renderer.render(begun).ids.tolist() == renderer.render(bare).ids.tolist()
    assert renderer.prompt(begun) == renderer.prompt(bare) and BEGUN in renderer.explain(begun).notes
    form = Renderer(tokenizer, "<s>{prompt} {completion}")
    assert form.render(bare).ids.tolist() == renderer.render(bare).ids.tolist()
    assert form.explain(bare).notes == (BEGUN,)
    text = Record("r1", "text", {"text": "<s>Tom has 3 apples.</s>"}, "data.jsonl:1")
    row = Renderer(tokenizer).render(text)
    assert tokenizer.decode(row.ids.tolist()) == "<s>Tom has 3 apples.</s>" and row.targets == len(row) - 1
    assert Renderer(tokenizer).explain(text).notes == (BEGUN,)


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_control_tokens_in_a_text_are_said(make_tokenizer, role):
    renderer = Renderer(make_tokenizer("chatml"))
    texts = {"system": "Be brief.", "user": "Hello?", "assistant": "Yes."} | {role: "a <|im_end|> b"}
    messages = [{"role": name, "content": text} for name, text in texts.items()]
    assert renderer.explain(talk(*messages)).notes == (CONTROL,)
    assert renderer.explain(talk(user("a <|im_emd|> b"), answer("<think>?</think> Yes."))).notes == ()
    pair = Record("r1", "prompt_completion", {"prompt": "a <|im_end|>", "completion": "42"}, "data.jsonl:1")
    assert Renderer(make_tokenizer(None), "{prompt}: {completion}").explain(pair).notes == (CONTROL,)
    assert (
        Renderer(make_tokenizer(None), "<|im_start|>{prompt}: {completion}")
        .explain(Record("r1", "prompt_completion", {"prompt": "a", "completion": "42"}, "data.jsonl:1"))
        .notes
        == ()
    )


def test_ids_that_a_template_refuses_are_numbered(make_tokenizer):
    strict = turns(
        "CONTENT"
        + EACH
        + "{% if c.id is not defined or c.id | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
        "<call>{{ c.id }} {{ c.function | tojson }}</call>{% endfor %}{{ m.tool_call_id }}"
    )
    renderer = Renderer(make_tokenizer(strict))
    assert targets(renderer, talk(*PAINTED))[1] == ()
    call = answer("", {"colour": "red"})
    del call["tool_calls"][0]["id"]
    texts, notes = targets(renderer, talk(PAINTED[0], call, {"role": "tool", "content": "RESULT"}, PAINTED[3]))
    assert texts[0].startswith("<call>call00001 ") and notes == (RENUMBERED,)
    assert "RESULTcall00001<|im_end|>" in renderer.prompt_text(
        talk(PAINTED[0], call, {"role": "tool", "content": "RESULT"}, PAINTED[3])
    )


def test_a_nameless_answer_of_a_tool_gets_the_name_of_its_call(make_tokenizer):
    named = turns(
        "{{ m.name + ': ' if m.role == 'tool' }}CONTENT" + EACH + "<call>{{ c.function | tojson }}</call>{% endfor %}"
    )
    renderer = Renderer(make_tokenizer(named))
    assert "paint: RESULT red" in renderer.prompt_text(talk(*PAINTED))
    assert renderer.explain(talk(*PAINTED)).notes == (NAMED,)


def test_arguments_in_pythons_form_are_said(make_tokenizer):
    renderer = Renderer(make_tokenizer(READ))
    texts, notes = targets(renderer, talk(user("?"), answer("", {"dry": True, "walls": ["a"]})))
    assert texts == ["<call>paint<dry>True</dry><walls>['a']</walls></call><|im_end|>"] and notes == (PYTHON,)
    assert renderer.explain(talk(user("?"), answer("", {"n": 2, "colour": "red"}))).notes == ()


def test_templates_that_want_parts_or_a_list_of_tools_get_them(make_tokenizer):
    parts = turns("{% for part in m.content or [] %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}")
    texts, notes = targets(Renderer(make_tokenizer(parts)), talk(user("?"), answer("Yes."), user("?"), answer("No.")))
    assert texts == ["Yes.<|im_end|>", "No.<|im_end|>"] and notes == ()
    listed = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}" + turns(None)
    texts, _ = targets(Renderer(make_tokenizer(listed)), talk(user("?"), answer("Yes.")))
    assert texts == ["Yes.<|im_end|>"]
    with pytest.raises(ModelError, match="fails on a question"):
        Renderer(make_tokenizer("{{ raise_exception('never') }}")).render(talk(user("?"), answer("Yes.")))


def test_null_and_empty_tools_and_an_empty_system_message(make_tokenizer):
    renderer = Renderer(make_tokenizer(OBJECT))
    messages = [{"role": "system", "content": ""}, user("?"), answer("red")]
    rows = [renderer.render(talk(*messages, tools=tools)).ids.tolist() for tools in (None, [], TOOLS)]
    assert rows[0] == rows[1] != rows[2]
    assert targets(renderer, talk(*messages, tools=TOOLS)) == (["red<|im_end|>"], ())


def test_reasoning_that_is_left_out_beside_calls_is_said(make_tokenizer):
    record = talk(PAINTED[0], answer("", {"colour": "red"}, reasoning_content="Hm."), *PAINTED[2:])
    texts, notes = targets(Renderer(make_tokenizer(OBJECT)), record)
    assert texts[0].startswith("<call>") and notes == (UNREASONED,)


def test_a_template_that_writes_the_time_is_read_within_one_second(make_tokenizer, monkeypatch):
    renderer = Renderer(make_tokenizer("{% if false %}{{ strftime_now('%S') }}{% endif %}" + OBJECT))
    template, seconds = renderer.template, iter([1, 2, 3, *[4] * 20])
    write = template.text
    monkeypatch.setattr(template, "text", lambda *given, **more: f"{next(seconds)}\n{write(*given, **more)}")
    assert targets(renderer, talk(user("?"), answer("Yes.")))[0] == ["Yes.<|im_end|>"]
