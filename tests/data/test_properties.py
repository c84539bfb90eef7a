"""Any file gives records or names its line; any conversation is masked exactly, or refused with the reason."""

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.chat.spans import ALTERED, UNCLOSED, squeeze
from luthier.data.render import Renderer
from luthier.data.shapes import last_answer
from luthier.data.sources import load_records, scan_records
from luthier.errors import DataError
from luthier.types import Record

FAMILIES = ("chatml", "llama3", "gemma", "mistral", "thinking", "opened", "plain")

GOOD = [
    {"prompt": "2+2?", "completion": "4"},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"text": "a text"},
    {"prompt": "?", "chosen": "yes", "rejected": "no"},
]
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=6) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
COLUMNS = ["prompt", "completion", "text", "messages", "chosen", "rejected", "id", "tools", "extra"]


@st.composite
def lines(draw):
    """One line of bytes: a good record, one with other values, one cut or with bytes put in, or anything."""
    kind = draw(st.sampled_from(["good", "changed", "damaged", "bytes"]))
    if kind == "bytes":
        return draw(st.binary(max_size=30)).replace(b"\n", b"")
    record = dict(draw(st.sampled_from(GOOD)))
    if kind == "changed":
        record |= draw(st.dictionaries(st.sampled_from(COLUMNS), VALUE, max_size=2))
    raw = json.dumps(record, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    if kind == "damaged":
        position = draw(st.integers(0, len(raw)))
        inserted = draw(
            st.sampled_from([b"", b"\xff", b"\xef\xbb\xbf", b"\x00", b"\r", b",", b"[" * 3000, b"NaN", b"1e999"])
        )
        raw = raw[:position] + inserted + raw[position + draw(st.integers(0, 40)) :]
    return raw


@given(st.lists(lines(), max_size=5), st.booleans(), st.booleans())
def test_any_lines_are_records_or_a_problem_of_their_line(tmp_path_factory, rows, marked, ended):
    path = tmp_path_factory.mktemp("any") / "any.jsonl"
    raw = b"\xef\xbb\xbf" * marked + b"\n".join(rows) + b"\n" * ended
    path.write_bytes(raw)
    records, problems = scan_records(path.name, path.parent)
    kept = {record.origin for record in records}
    matches = [re.match(r"any\.jsonl:\d+", problem.message) for problem in problems]
    assert all(matches) or "the data set is empty" in problems[-1].message
    assert kept.isdisjoint(match[0] for match in matches if match)
    written = sum(bool(line.decode("utf-8-sig", "replace").strip()) for line in raw.split(b"\n"))
    assert len(records) + sum(match is not None for match in matches) in (written, 0 if not records else written)
    if problems:
        with pytest.raises(DataError) as caught:
            load_records(path.name, path.parent)
        assert caught.value.message in {problem.message for problem in problems}


@pytest.mark.parametrize("name", ["any.json", "any.csv", "any.parquet"])
@given(st.binary(max_size=60) | st.lists(lines(), max_size=3).map(lambda rows: b"[" + b",".join(rows) + b"]"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_of_other_kinds_are_records_or_refused_by_name(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw)
    records, problems = scan_records(name, tmp_path)
    assert records or problems
    assert all(name in problem.message for problem in problems)


@pytest.mark.parametrize("raw, line", [(b'"', 1), (b'prompt,completion\na,b\nc,"d', 3)])
def test_a_cell_without_an_end_is_refused_by_its_line(tmp_path, raw, line):
    (tmp_path / "open.csv").write_bytes(raw)
    with pytest.raises(DataError, match=f"open.csv:{line}: not valid CSV"):
        load_records("open.csv", tmp_path)


@pytest.mark.parametrize("depth", [50, 500, 900, 5000])
@pytest.mark.parametrize("column", ["tools", "extra", "id", "completion"])
def test_deep_values_are_kept_or_refused(tmp_path, column, depth):
    record = json.dumps({"prompt": "a", "completion": "b"})[:-1] + f', "{column}": ' + "[" * depth + "]" * depth + "}"
    (tmp_path / "deep.jsonl").write_text(record + "\n")
    records, problems = scan_records("deep.jsonl", tmp_path)
    assert len(records) == 1 or "deep.jsonl:1" in problems[0].message


WORDS = [
    "a",
    "B",
    " ",
    "  ",
    "\n",
    "\n\n",
    "é",
    "🎻",
    "42",
    ".",
    "Human:",
    "Helper:",
    "user",
    "assistant",
    "\t",
    "\u00a0",
]
MARKS = ["<|im_end|>", "</s>", "[INST]", "<end_of_turn>", "ZQANSWERQZ", "{{", "{%", "\u202e", "\u0301"]
PIECES = st.sampled_from([*WORDS, *MARKS])
TEXT = st.lists(PIECES, min_size=1, max_size=6).map("".join)
ROLES = st.sampled_from(
    [
        "ua",
        "sua",
        "uaua",
        "u",
        "suau",
        "a",
        "uua",
        "uaa",
        "uauaua",
        "ta",
    ]  # first letters of user, assistant, system, tool
)
NAMED = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}


@st.composite
def conversations(draw):
    return [{"role": NAMED[role], "content": draw(TEXT)} for role in draw(ROLES)]


def runs(tokenizer, row):
    """The text of each run of targets, without white space and what ends a turn."""
    ids, weights = row.ids.tolist(), row.streams["weights"].values
    target_runs: list[list[int]] = []
    for index, token in enumerate(ids):
        if weights[index]:
            if index == 0 or not weights[index - 1]:
                target_runs.append([])
            target_runs[-1].append(token)
    return [tokenizer.decode(run, skip_special_tokens=False) for run in target_runs]


@pytest.mark.parametrize("backend", ["byte_level", "metaspace"])
@given(family=st.sampled_from(FAMILIES), messages=conversations())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_targets_of_any_conversation_are_its_answers(make_tokenizer, family, backend, messages):
    tokenizer = make_tokenizer(family, backend)
    record = Record("r", "messages", {"messages": messages}, "any.jsonl:1")
    renderer = Renderer(tokenizer)
    try:
        rendering = renderer.explain(record)
    except DataError as error:
        assert error.message.startswith("any.jsonl:1: record r: ") and len(error.message) > 40
        return
    answers = [
        message["content"] for message in messages[: last_answer(messages) + 1] if message["role"] == "assistant"
    ]
    wanted = [squeeze(answer) for answer in answers]
    decoded = [squeeze(run) for run in runs(tokenizer, rendering.row)]
    ends = {squeeze(token) for token in tokenizer.all_special_tokens}
    ends |= {""} if family == "plain" or UNCLOSED in rendering.notes else set()
    if answers:
        assert rendering.row.ids[-1] in renderer.end_ids and rendering.row.streams["weights"].values[-1] == 1
    if ALTERED not in rendering.notes:
        assert _matches("".join(decoded), wanted, ends), (decoded, wanted)


def _matches(text, wanted, ends):
    """Whether a text is the wanted answers in their order, each with one of these marks behind it."""
    if not wanted:
        return text == ""
    if not text.startswith(wanted[0]):
        return False
    rest = text[len(wanted[0]) :]
    return any(rest.startswith(end) and _matches(rest[len(end) :], wanted[1:], ends) for end in ends)
