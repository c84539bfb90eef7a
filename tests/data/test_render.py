import numpy
import pytest

from luthier.chat.spans import ALTERED, OPENING, SCAFFOLD, UNCLOSED, UNREASONED
from luthier.chat.text import SENTINEL
from luthier.data.render import IN_PIECES, Renderer
from luthier.errors import DataError, ModelError, RecipeError
from luthier.types import Record

FAMILIES = ["chatml", "llama3", "gemma", "mistral", "thinking", "opened", "plain"]
TALK = [
    {"role": "user", "content": "what is 12 + 30?"},
    {"role": "assistant", "content": "The answer is 42."},
    {"role": "user", "content": "Hello, how are you?"},
    {"role": "assistant", "content": "I am fine 😀, café."},
]
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "thinking": "<|im_end|>",
    "opened": "</s>",
    "plain": "</s>",
}


def talk(*messages, **fields):
    return Record("r1", "messages", {"messages": list(messages) or TALK, **fields}, "data.jsonl:1")


def pair(prompt="what is 12 + 30?", completion="42", **fields):
    return Record("r1", "prompt_completion", {"prompt": prompt, "completion": completion, **fields}, "data.jsonl:1")


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def runs(renderer, row):
    """The text of each run of target tokens."""
    targets = row.streams["weights"].values != 0
    borders = numpy.flatnonzero(numpy.diff(numpy.concatenate([[False], targets, [False]])))
    decode = renderer.tokenizer.decode
    return [decode(row.ids[a:b].tolist()) for a, b in zip(borders[::2], borders[1::2], strict=True)]


@pytest.mark.parametrize("backend", ["byte_level", "metaspace"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_the_end_of_turn_are_targets_and_nothing_else(make_tokenizer, family, backend):
    renderer = Renderer(make_tokenizer(family, backend))
    row = renderer.render(talk())
    first, last = (text.strip() for text in runs(renderer, row))
    closing = "" if family == "plain" else ENDS[family]
    assert (first, last) == (f"The answer is 42.{closing}", f"I am fine 😀, café.{ENDS[family]}")
    assert row.ids[-1] in renderer.end_ids and row.targets == int(row.streams["weights"].values.sum())
    assert row.ids.dtype == numpy.int32 and row.streams["weights"].values.dtype == numpy.float32


@pytest.mark.parametrize("backend", ["byte_level", "metaspace"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["auto", "completion", "all"])
def test_the_prompt_is_the_rows_own_beginning(make_tokenizer, family, backend, targets):
    renderer = Renderer(make_tokenizer(family, backend), targets=targets)
    for record in (talk(), pair()):
        row, prompt = renderer.render(record), renderer.prompt(record)
        answer = renderer.reference(record)
        assert row.ids[: len(prompt)].tolist() == prompt
        rest = renderer.tokenizer.decode(row.ids[len(prompt) :].tolist())
        assert rest.strip().startswith(answer) and rest.strip().removeprefix(answer) == ENDS[family]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "content", [" padded \n", "a\n\nb", f"the word {SENTINEL} itself", "<b>&amp;", "{{ x }}", "é" * 30, "."]
)
def test_awkward_answers_keep_their_spans(make_tokenizer, family, content):
    renderer = Renderer(make_tokenizer(family))
    (only,) = runs(renderer, renderer.render(pair(completion=content)))
    assert only.strip().removesuffix(ENDS[family]).strip() == content.strip()


def test_no_second_bos_and_a_system_prompt_by_default(make_tokenizer):
    llama, chatml = Renderer(make_tokenizer("llama3")), Renderer(make_tokenizer("chatml"))
    assert llama.render(pair()).ids.tolist().count(llama.tokenizer.bos_token_id) == 1
    assert "You are a helpful assistant." in chatml.prompt_text(pair())
    own = talk(say("system", "Be brief."), *TALK)
    assert "You are a helpful assistant." not in chatml.prompt_text(own)
    assert len(runs(chatml, chatml.render(own))) == 2


def test_a_system_message_that_moves_is_followed(make_tokenizer):
    renderer = Renderer(make_tokenizer("mistral"))
    record = talk(say("system", "Be brief."), *TALK)
    rendering = renderer.explain(record)
    assert "42.</s>[INST] Be brief.\n\nHello" in renderer.prompt_text(record)
    assert [text.strip() for text in runs(renderer, rendering.row)] == [
        "The answer is 42.</s>",
        "I am fine 😀, café.</s>",
    ]


def test_a_role_the_template_refuses_is_explained(make_tokenizer):
    with pytest.raises(DataError, match=r"data\.jsonl:1: record r1: .*System role not supported"):
        Renderer(make_tokenizer("gemma")).render(talk(say("system", "Be brief."), *TALK))


def test_an_empty_thinking_block_is_given_and_never_trained(make_tokenizer):
    renderer = Renderer(make_tokenizer("thinking"))
    rendering = renderer.explain(talk())
    assert SCAFFOLD in rendering.notes
    assert not any("think" in text for text in runs(renderer, rendering.row))
    assert renderer.prompt_text(talk()).endswith("<think>\n\n</think>\n\n")


def test_thoughts_of_the_last_answer_are_trained_and_stripped_ones_are_context(make_tokenizer):
    renderer = Renderer(make_tokenizer("thinking"))
    thoughtful = "<think>Is it 42? Yes.</think>Yes."
    last = talk(*TALK[:3], say("assistant", thoughtful))
    assert runs(renderer, renderer.render(last))[1] == "<think>\nIs it 42? Yes.\n</think>\n\nYes.<|im_end|>"
    assert renderer.prompt_text(last).endswith("<|im_start|>assistant\n")
    earlier = talk(TALK[0], say("assistant", thoughtful), *TALK[2:])
    rendering = renderer.explain(earlier)
    assert ALTERED in rendering.notes
    assert runs(renderer, rendering.row) == ["I am fine 😀, café.<|im_end|>"]


def test_reasoning_and_tool_calls_are_part_of_the_answer(make_tokenizer):
    renderer = Renderer(make_tokenizer("thinking"))
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 12}}}
    row = renderer.render(talk(TALK[0], say("assistant", "Yes.", reasoning_content="It adds.", tool_calls=[call])))
    (only,) = runs(renderer, row)
    assert only.startswith("<think>\nIt adds.\n</think>\n\nYes.<tool_call>") and only.endswith("</tool_call><|im_end|>")


def test_reasoning_that_the_template_leaves_out_is_reported(make_tokenizer):
    renderer = Renderer(make_tokenizer("chatml"))
    rendering = renderer.explain(talk(TALK[0], say("assistant", "Yes.", reasoning_content="It adds.")))
    assert rendering.notes == (UNREASONED,) and runs(renderer, rendering.row) == ["Yes.<|im_end|>"]


@pytest.mark.parametrize("opening", ["<think>\n", "<think>\n\n</think>\n\n"])
def test_a_thought_that_the_generation_prompt_opens_or_skips_is_trained_from_where_it_differs(make_tokenizer, opening):
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}<|assistant|>"
        "{% if '<think>' not in m.content %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}</s>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>" + opening + "{% endif %}"
    )
    renderer = Renderer(make_tokenizer(template))
    record = pair(completion="<think>\nIs it 42?\n</think>\n\n42")
    row = renderer.render(record)
    assert runs(renderer, row) == ["Is it 42?\n</think>\n\n42</s>"]
    assert row.ids[: len(renderer.prompt(record))].tolist() == renderer.prompt(record)
    assert runs(renderer, renderer.render(pair())) == ["42</s>"]


def test_turns_that_close_otherwise_than_the_last_keep_their_own_end(make_tokenizer):
    shorter = "{% for m in messages %}<|user|>{{ m.content }}<|im_end|>\n{% endfor %}</s>"
    renderer = Renderer(make_tokenizer(shorter))
    rendering = renderer.explain(talk())
    assert runs(renderer, rendering.row) == ["The answer is 42.<|im_end|>", "I am fine 😀, café.<|im_end|>\n</s>"]
    assert rendering.notes == ()
    ids = renderer.tokenizer.convert_tokens_to_ids(["<|im_end|>", "</s>"])
    assert renderer.end_ids == set(ids)
    other = "{% for m in messages %}{{ m.content }}{{ '</s>' if loop.last else '<|eot_id|>' }}{% endfor %}"
    renderer = Renderer(make_tokenizer(other))
    rendering = renderer.explain(talk())
    assert UNCLOSED in rendering.notes
    assert runs(renderer, rendering.row) == ["The answer is 42.", "I am fine 😀, café.</s>"]


def test_a_conversation_may_start_with_the_assistant(make_tokenizer):
    renderer = Renderer(make_tokenizer("llama3"))
    row = renderer.render(talk(say("assistant", "Hello."), *TALK[:2]))
    assert runs(renderer, row) == ["Hello.<|eot_id|>", "The answer is 42.<|eot_id|>"]


def test_a_last_answer_that_the_template_rewrites_is_refused(make_tokenizer):
    template = "{% for m in messages %}<|user|>{{ m.content | upper }}</s>{% endfor %}"
    with pytest.raises(DataError, match="rewrites the last answer"):
        Renderer(make_tokenizer(template)).render(pair(completion="Yes"))
    silent = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(ModelError, match="writes an answer 0 times"):
        Renderer(make_tokenizer(silent)).render(pair())


def test_a_generation_prompt_that_no_answer_follows_is_left_out(make_tokenizer):
    renderer = Renderer(make_tokenizer("opened"))
    assert OPENING in renderer.explain(pair()).notes
    assert renderer.prompt_text(pair()).endswith("<|assistant|>")


def test_a_border_that_a_token_would_span_is_tokenised_in_pieces(make_tokenizer):
    template = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    renderer = Renderer(make_tokenizer(template))
    record = pair("The an", "swer is 42.")
    rendering = renderer.explain(record)
    assert IN_PIECES in rendering.notes
    assert runs(renderer, rendering.row) == ["swer is 42.</s>"]
    assert renderer.prompt(record) == renderer.tokenizer("The an", add_special_tokens=False)["input_ids"]


def test_messages_without_a_chat_template_say_what_to_do(make_tokenizer):
    with pytest.raises(ModelError, match="no chat template") as caught:
        Renderer(make_tokenizer(None)).render(talk())
    assert "data.render" in caught.value.hint


def test_a_format_string_trains_the_completion_and_its_space(make_tokenizer):
    renderer = Renderer(make_tokenizer(None), "Question: {prompt}\nAnswer: {completion}")
    rendering = renderer.explain(pair())
    assert rendering.notes == ()
    assert renderer.tokenizer.decode(rendering.row.ids.tolist()) == "<s>Question: what is 12 + 30?\nAnswer: 42</s>"
    assert runs(renderer, rendering.row) == [" 42</s>"]
    assert renderer.prompt_text(pair()) == "Question: what is 12 + 30?\nAnswer:"
    assert renderer.end_ids == {renderer.tokenizer.eos_token_id}
    as_talk = talk(say("user", "what is 12 + 30?"), say("assistant", "42"))
    assert renderer.render(as_talk).ids.tolist() == rendering.row.ids.tolist()


def test_a_format_string_may_use_other_columns(make_tokenizer):
    renderer = Renderer(make_tokenizer(None), "{{{level}}} {prompt}\n{completion}\n\n")
    record = pair(level=3)
    assert renderer.prompt_text(record) == "{3} what is 12 + 30?\n"
    assert runs(renderer, renderer.render(record)) == ["42\n\n</s>"]
    with pytest.raises(DataError, match=r"asks for the column `level`, which is missing\..*found: prompt, completion"):
        renderer.render(pair())
    with pytest.raises(DataError, match="one question and one answer"):
        renderer.render(talk())


@pytest.mark.parametrize(
    "form", ["{prompt}", "no columns", "{prompt} {completion} {prompt}", "{completion:>4}", "{prompt", "chta"]
)
def test_bad_format_strings_are_refused(make_tokenizer, form):
    with pytest.raises(RecipeError, match=r"data\.render"):
        Renderer(make_tokenizer(None), form)


def test_text_is_all_target_and_ends(make_tokenizer):
    renderer = Renderer(make_tokenizer(None))
    row = renderer.render(Record("r1", "text", {"text": "Tom has 7 apples."}, "data.jsonl:1"))
    assert renderer.tokenizer.decode(row.ids.tolist()) == "<s>Tom has 7 apples.</s>"
    assert row.targets == len(row) - 1
    with pytest.raises(DataError, match="without a prompt"):
        renderer.prompt(Record("r1", "text", {"text": "Tom"}, "data.jsonl:1"))


def test_a_tokenizer_that_ends_texts_itself_ends_them_once(make_tokenizer):
    from tokenizers import processors

    tokenizer = make_tokenizer(None)
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", eos)]
    )
    renderer = Renderer(tokenizer, "{prompt} {completion}")
    assert renderer.render(pair()).ids.tolist().count(eos) == 1
    assert eos not in renderer.prompt(pair())


@pytest.mark.parametrize(("targets", "count"), [("auto", 2), ("assistant", 2), ("completion", 1)])
def test_targets_choose_the_answers(make_tokenizer, targets, count):
    renderer = Renderer(make_tokenizer("chatml"), targets=targets)
    assert len(runs(renderer, renderer.render(talk()))) == count
    split = Record("r1", "prompt_completion", {"prompt": TALK[:3], "completion": TALK[3:]}, "data.jsonl:1")
    assert len(runs(renderer, renderer.render(split))) == (2 if targets == "assistant" else 1)


def test_all_targets_every_token(make_tokenizer):
    row = Renderer(make_tokenizer("chatml"), targets="all").render(talk())
    assert row.targets == len(row) - 1


def preference(prompt, chosen, rejected):
    return Record("r1", "preference", {"prompt": prompt, "chosen": chosen, "rejected": rejected}, "data.jsonl:1")


@pytest.mark.parametrize(
    "record",
    [
        preference("Hello?", "Yes.", "No, no."),
        preference([say("user", "Hello?")], [say("assistant", "Yes.")], [say("assistant", "No, no.")]),
        preference(
            None,
            [say("user", "Hello?"), say("assistant", "Yes.")],
            [say("user", "Hello?"), say("assistant", "No, no.")],
        ),
    ],
    ids=["strings", "messages", "prompt inside"],
)
def test_a_pair_gives_two_rows_after_one_prompt(make_tokenizer, record):
    renderer = Renderer(make_tokenizer("chatml"))
    rendering = renderer.explain(record)
    chosen, rejected = rendering.rows
    assert runs(renderer, chosen) == ["Yes.<|im_end|>"] and runs(renderer, rejected) == ["No, no.<|im_end|>"]
    before = rendering.prompt_tokens
    assert chosen.ids[:before].tolist() == rejected.ids[:before].tolist() == renderer.prompt(record)
    assert (chosen.id, rejected.id) == ("r1/chosen", "r1/rejected") and chosen.record == rejected.record == "r1"
    assert (chosen.streams["preferred"].values, rejected.streams["preferred"].values) == (1, 0)
    assert renderer.reference(record) == "Yes." and renderer.render(record).id == "r1/chosen"


def test_a_pair_through_a_format_string(make_tokenizer):
    renderer = Renderer(make_tokenizer("chatml"), "Q: {prompt} A: {completion}")
    chosen, rejected = renderer.explain(preference("Hello?", "Yes.", "No.")).rows
    assert renderer.tokenizer.decode(chosen.ids.tolist()).endswith("Q: Hello? A: Yes.</s>")
    assert renderer.tokenizer.decode(rejected.ids.tolist()).endswith("Q: Hello? A: No.</s>")


def test_pairs_without_one_prompt_are_refused(make_tokenizer):
    renderer = Renderer(make_tokenizer("chatml"))
    earlier = [say("user", "Hello?"), say("assistant", "Yes."), say("user", "Sure?")]
    other = [say("user", "Hello?"), say("assistant", "No."), say("user", "Sure?")]
    parted = preference(None, [*earlier, say("assistant", "Yes.")], [*other, say("assistant", "No.")])
    with pytest.raises(DataError, match=r"data\.jsonl:1: record r1: .*answer different prompts"):
        renderer.render(parted)
    with pytest.raises(DataError, match="no `prompt` column"):
        renderer.render(preference(None, "a", "b"))


def test_a_conversation_that_waits_for_an_answer_gives_a_prompt(make_tokenizer):
    renderer = Renderer(make_tokenizer("chatml"))
    record = talk(*TALK[:3])
    assert renderer.tokenizer.decode(renderer.prompt(talk(TALK[0]))).endswith("<|im_start|>assistant\n")
    unanswered = talk(say("system", "x"), TALK[0])
    assert renderer.render(unanswered).targets == 0 and renderer.reference(unanswered) == ""
    # The question after the last answer is no part of what the record teaches.
    assert renderer.render(record).ids.tolist() == renderer.render(talk(*TALK[:2])).ids.tolist()


def test_tools_reach_the_template(make_tokenizer):
    template = "{{ tools | length if tools else 0 }} tools. {% for m in messages %}{{ m.content }}</s>{% endfor %}"
    renderer = Renderer(make_tokenizer(template))
    tools = '[{"type": "function", "function": {"name": "add"}}]'
    assert renderer.prompt_text(pair(tools=tools)).startswith("1 tools.")
    with pytest.raises(DataError, match="`tools` is a string but not JSON"):
        renderer.render(pair(tools="{"))


def test_an_answer_outside_the_vocabulary_is_named():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "yes": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    renderer = Renderer(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>"), "{prompt} {completion}")
    with pytest.raises(DataError, match=r"data\.jsonl:1: record r1: the answer 'no' reads back"):
        renderer.render(pair("yes", "no"))


def test_a_tokenizer_file_that_truncates_is_not_obeyed(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    whole = Renderer(tokenizer).render(talk()).ids.tolist()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=500)
    renderer = Renderer(tokenizer)
    assert renderer.render(talk()).ids.tolist() == whole
    tokenizer("others may truncate meanwhile", truncation=True, max_length=2)
    assert renderer.render(talk()).ids.tolist() == whole


def test_without_eos_nothing_could_end(make_tokenizer):
    with pytest.raises(ModelError, match="no EOS token"):
        Renderer(make_tokenizer(None, eos_token=None, pad_token=None), "{prompt} {completion}").render(pair())


def test_unknown_targets_and_slow_tokenizers_are_refused(make_tokenizer):
    with pytest.raises(RecipeError, match=r"data\.targets is `everything`"):
        Renderer(make_tokenizer("chatml"), targets="everything")
    with pytest.raises(ModelError, match="no character offsets"):
        Renderer(object())


def test_the_preview_shows_the_text_whole(make_tokenizer):
    for backend in ("byte_level", "metaspace"):
        renderer = Renderer(make_tokenizer("chatml", backend))
        row = renderer.render(talk())
        preview = renderer.preview(row)
        assert "".join(text for text, _ in preview) == renderer.tokenizer.decode(row.ids.tolist())
        assert not any("\ufffd" in text for text, _ in preview)
        assert "".join(text for text, target in preview if target).endswith("I am fine 😀, café.<|im_end|>")


def test_the_key_knows_everything_that_decides_the_rows(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    keys = {Renderer(tokenizer).key, Renderer(tokenizer, targets="all").key, Renderer(tokenizer, "{text}").key}
    keys |= {Renderer(make_tokenizer("llama3")).key, Renderer(make_tokenizer("chatml", "metaspace")).key}
    assert len(keys) == 5 and Renderer(make_tokenizer("chatml")).key in keys
