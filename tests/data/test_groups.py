import random
import unicodedata

import pytest

from luthier.data.groups import group_records, with_groups
from luthier.errors import DataError
from luthier.types import Record

WORDS = [f"word{index}" for index in range(2000)]
SHORT = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}] * 3


def text(seed, count=12):
    return " ".join(random.Random(f"text:{seed}").choices(WORDS, k=count))


def chat(*contents, system=None, name=""):
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return Record(name, "messages", {"messages": messages}, "x:1")


def plain(prompt, completion="yes"):
    return Record("", "prompt_completion", {"prompt": prompt, "completion": completion}, "x:1")


def document(content):
    return Record("", "text", {"text": content}, "x:1")


def turn_by_turn(seed, turns=3, system=None, before=()):
    contents = [*before, *(text(f"{seed}-{index}") for index in range(2 * turns))]
    return [chat(*contents[: len(before) + 2 * count], system=system) for count in range(1, turns + 1)]


def sizes(records, **options):
    return sorted((len(members) for members in group_records(records, **options).groups), reverse=True)


def test_a_conversation_and_its_continuations_are_a_group():
    records = [record for seed in range(20) for record in turn_by_turn(seed)]
    order = random.Random(0).sample(records, len(records))
    assert sizes(records) == [3] * 20 == sizes(order)


def test_short_first_questions_and_common_follow_ups_join_no_others():
    rows = []
    for colour in ("red", "blue", "green", "brown", "black", "white", "pink", "grey"):
        contents = [f"What is {colour}?", f"{colour} it is.", "What goes with it?", "Brown.", "And what else?", "Pink."]
        rows += [chat(*contents[:count]) for count in (2, 4, 6)]
    assert sizes(rows) == [3] * 8


def test_turns_in_one_string_that_name_their_speakers_are_a_conversation():
    records = []
    for seed in range(8):
        history = ""
        for turn in range(3):
            history += f"User: {text(f'{seed}-{turn}')}\n"
            answer = text(f"{seed}-{turn}-answer")
            records.append(plain(history, answer))
            history += f"Assistant: {answer}\n"
    assert sizes(records) == [3] * 8
    task = f"Say in one word what this is about, please, and nothing else at all, {text('task')}:"
    records = [plain(task), *(plain(f"{task} {text(f'about {index}')}") for index in range(30))]
    assert sizes(records) == [1] * 31


def test_turns_in_one_string_are_a_conversation():
    rows = []
    for seed in range(10):
        first, answer, second = (text(f"{seed}-{index}") for index in range(3))
        rows.append(plain(f"User: {first}\nAssistant:", f" {answer}"))
        rows.append(plain(f"User: {first}\nAssistant: {answer}</s>\nUser: {second}\nAssistant:", " yes"))
    assert sizes(rows) == [2] * 10


def test_messages_and_their_first_turn_as_prompt_and_completion_are_a_conversation():
    (first, *_, last) = turn_by_turn(0)
    opening = [message["content"] for message in first.fields["messages"]]
    assert sizes([plain(*opening), last, chat(text("other"), "a")]) == [2, 1]


def test_branches_of_one_conversation_are_a_group():
    stem = [text(index) for index in range(3)]
    branches = [chat(*stem[:3], text(f"reply {index}"), text(f"more {index}"), "yes") for index in range(4)]
    assert sizes([*branches, *(chat(text(f"o{index}"), "a", text(f"p{index}"), "b") for index in range(20))])[0] == 4


@pytest.mark.parametrize("opening", [("Hi", "Hello! How can I help you?"), ("Hello, can you please help me?", "Yes.")])
@pytest.mark.parametrize("system", [None, "You are helpful. " + text("system", 80)])
@pytest.mark.parametrize("count", [3, 8, 40])
def test_a_greeting_or_a_system_prompt_makes_no_group(opening, system, count):
    rows = [record for seed in range(count) for record in turn_by_turn(seed, 2, system, opening)]
    assert max(sizes(rows)) <= 3
    assert max(sizes([chat(*opening, system=system), *rows])) <= 3


def test_many_system_prompts_make_no_groups():
    rows = []
    for index in range(240):
        rows.append(chat(text(index), "yes", system=f"Instructions {index % 12}: {text(f's{index % 12}', 120)}"))
    assert max(sizes(rows)) == 1


@pytest.mark.parametrize("count", [6, 30])
def test_examples_before_the_question_make_no_group(count):
    long = [text(f"example {index}", 15) for index in range(6)]
    for before in ([message["content"] for message in SHORT], long):
        assert max(sizes([chat(*before, text(index), "yes") for index in range(count)])) == 1
    written = "".join(f"Q: {text(f'q{index}')}\nA: {text(f'a{index}', 2)}\n\n" for index in range(4))
    assert max(sizes([plain(f"{written}Q: {text(index)}\nA:", "yes") for index in range(40)])) == 1


def test_windows_of_a_document_are_a_group():
    rows = []
    for name in range(8):
        whole = text(f"document {name}", 300)
        rows += [document(whole[start : start + 500]) for start in range(0, len(whole), 400)]  # cut within words
    per_document = len(rows) // 8
    assert sizes(rows) == [per_document] * 8


def test_windows_below_a_title_are_a_group():
    rows = []
    for name in range(20):
        words = text(f"document {name}", 340).split()
        starts = range(0, 280, 40)
        rows += [document(f"Chapter {name}, page {start}\n{' '.join(words[start : start + 60])}") for start in starts]
    assert sizes(rows)[10:] == [7] * 10


def test_windows_of_a_conversation_are_a_group():
    rows = []
    for name in range(12):
        turns = [(text(f"{name}-{index}", 15), text(f"{name}+{index}", 15)) for index in range(6)]
        rows += [chat(*turns[index], *turns[index + 1]) for index in range(5)]
    assert sizes(rows) == [5] * 12


def test_characters_without_spaces_between_words_are_compared_one_by_one():
    rows = []
    for index in range(25):
        letters = "".join(chr(0x4E00 + random.Random(f"{index}-{k}").randrange(2000)) for k in range(60))
        rows += [plain(letters), plain(f"{letters[:20]}的{letters[21:]}")]
    assert sizes(rows) == [2] * 25


@pytest.mark.parametrize("count, forms", [(8, 1), (30, 1), (30, 3), (400, 12)])
def test_a_form_of_texts_makes_no_group(count, forms):
    rows = []
    for index in range(count):
        form = text(f"form {index % forms}", 30)
        rows.append(document(f"{form}\n\n### Instruction:\n{text(index, 8)}\n\n### Response:\n{text(f'r{index}', 8)}"))
    assert max(sizes(rows)) == 1


def test_a_text_and_its_beginning_are_a_group_and_a_licence_is_none():
    licence = text("licence", 60)
    files = [document(f"{licence}\n{text(index, 80)}") for index in range(30)]
    assert max(sizes(files)) == 1
    assert sizes([document(text(0, 40)), document(f"{text(0, 40)} {text(1, 80)}"), document(text(2, 40))]) == [2, 1]


def test_texts_in_another_form_of_unicode_are_the_same():
    question = "Où est l'école de Zoë à Besançon, près du café?"
    wide = "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in question)
    forms = [unicodedata.normalize(form, question) for form in ("NFC", "NFD")]
    forms += [wide, question.upper(), question.replace(" ", " \n"), question.replace("école", "éco\u200ble")]
    assert sizes([plain(form, str(index)) for index, form in enumerate(forms)]) == [6]
    assert sizes([plain("What is 5²?"), plain("What is 52?")]) == [1, 1]


def test_one_prompt_is_one_group_whatever_the_answers_and_labels():
    labelled = [
        Record("", "prompt_completion", {"prompt": text(0), "completion": str(index), "label": index % 2 == 0}, "x:1")
        for index in range(6)
    ]
    pairs = [
        Record("", "preference", {"prompt": text(1), "chosen": f"good {index}", "rejected": "bad"}, "x:1")
        for index in range(4)
    ]
    assert sizes([*labelled, *pairs, *(plain(text(f"o{index}")) for index in range(40))])[:3] == [6, 4, 1]


def test_a_column_keeps_records_together():
    rows = [
        Record("", "text", {"text": text(index, 30), "document": f"d{index % 7}" if index < 70 else None}, "x:1")
        for index in range(75)
    ]
    assert sizes(rows, column="document") == [10] * 7 + [1] * 5
    with pytest.raises(DataError, match="No record has the column `documnt`") as error:
        group_records(rows, column="documnt")
    assert "document" in str(error.value)


def test_the_name_of_a_group_does_not_depend_on_the_order():
    records = [record for seed in range(10) for record in turn_by_turn(seed)]
    records = [Record(f"r{index}", row.shape, row.fields, row.origin) for index, row in enumerate(records)]
    shuffled = random.Random(3).sample(records, len(records))
    first, other = (
        {row.id: row.group for row in with_groups(rows, group_records(rows))} for rows in (records, shuffled)
    )
    assert first == other and all(name in first for name in first.values()) and len(set(first.values())) == 10


def test_no_records_have_no_groups():
    assert group_records([]).groups == []
