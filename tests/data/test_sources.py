import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.identity import content_hash
from luthier.data.shapes import EmptyAnswer
from luthier.data.sources import NotUtf8, load_records, scan, scan_records
from luthier.errors import DataError, LuthierError, RecipeError

PAIR = {"prompt": "2+2?", "completion": "4"}
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture
def write(tmp_path):
    def _write(*rows, name="data.jsonl"):
        lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
        (tmp_path / name).write_bytes(b"\n".join(lines) + b"\n")
        return name

    return _write


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"messages": TALK}, "messages"),
        (PAIR, "prompt_completion"),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, "prompt_completion"),
        ({"text": "once upon a time"}, "text"),
        ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "preference"),
        ({"chosen": TALK, "rejected": TALK}, "preference"),
        ({"prompt": TALK[:1], "chosen": TALK[1:], "rejected": TALK[1:]}, "preference"),
    ],
)
def test_the_formats_of_trl_are_read(write, tmp_path, row, shape):
    (record,) = load_records(write({**row, "source": "web"}), tmp_path)
    assert record.shape == shape
    assert record.origin == "data.jsonl:1"
    assert record.fields["source"] == "web"
    assert all(record.fields[key] == value for key, value in row.items())


def test_columns_are_renamed(write, tmp_path):
    name = write({"question": "2+2?", "answer": "4", "text": "decoy", "level": 3})
    columns = {"prompt": "question", "completion": "answer"}
    (record,) = load_records({"path": name, "columns": columns}, tmp_path)
    assert record.shape == "prompt_completion"
    assert record.fields == {"prompt": "2+2?", "completion": "4", "text": "decoy", "level": 3}


def test_missing_columns_are_named_with_a_suggestion(write, tmp_path):
    with pytest.raises(DataError) as caught:
        load_records(write({"question": "2+2?", "answer": "4"}), tmp_path)
    assert "data.jsonl:1" in caught.value.message and "question, answer" in caught.value.message
    assert "columns: {prompt: question, completion: answer}" in caught.value.hint


def test_a_wrong_name_under_columns_is_named(write, tmp_path):
    with pytest.raises(DataError, match=r"prompt from `questoin`.*Columns found: question, answer"):
        load_records({"path": write({"question": "a", "answer": "b"}), "columns": {"prompt": "questoin"}}, tmp_path)


@pytest.mark.parametrize("bad", [b'{"prompt": "a", "completion": ', b"not json", b'{"text": NaN}', b"[" * 100_000])
def test_malformed_json_names_file_and_line(write, tmp_path, bad):
    with pytest.raises(DataError, match=r"data\.jsonl:2: not valid JSON"):
        load_records(write(PAIR, bad), tmp_path)


def test_a_line_that_is_no_object_is_named(write, tmp_path):
    with pytest.raises(DataError, match=r"data\.jsonl:2: expected an object"):
        load_records(write(PAIR, [1, 2]), tmp_path)


def test_other_encodings_name_line_and_byte(write, tmp_path):
    with pytest.raises(NotUtf8, match=r"data\.jsonl:2: byte 12 \(0xe9\) is not UTF-8") as caught:
        load_records(write(PAIR, '{"text": "né"}'.encode("latin-1")), tmp_path)
    assert "iconv" in caught.value.hint
    (tmp_path / "wide.json").write_bytes(json.dumps([PAIR]).encode("utf-16"))
    with pytest.raises(NotUtf8, match=r"wide\.json, line 1: byte 1 .*UTF-16"):
        load_records("wide.json", tmp_path)


def test_a_byte_order_mark_and_other_line_ends_are_harmless(tmp_path):
    (tmp_path / "data.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\r\n\r\n")
    assert [record.fields for record in load_records("data.jsonl", tmp_path)] == [PAIR]


def test_a_line_separator_inside_a_string_ends_no_line(write, tmp_path):
    (record,) = load_records(write({"text": "one\u2028two\u0085three"}), tmp_path)
    assert record.fields["text"] == "one\u2028two\u0085three"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": ""},
        {"prompt": "q", "completion": " \n"},
        {"text": ""},
        {"prompt": "q", "chosen": "", "rejected": "b"},
        {"prompt": "q", "completion": []},
        {"messages": TALK[:1]},
        {"messages": [*TALK, {"role": "user", "content": "?"}, {"role": "assistant", "content": " "}]},
    ],
)
def test_empty_answers_name_the_record(write, tmp_path, row):
    with pytest.raises(EmptyAnswer, match=r"data\.jsonl:2: "):
        load_records(write(PAIR, row), tmp_path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "completion": 4}, "`completion` must be a string or a list of messages, found int"),
        ({"prompt": "q", "completion": {"a": 1}}, "found dict"),
        ({"messages": "hello"}, "`messages` must be a list of messages, found str"),
        ({"text": ["a"]}, "`text` must be a string"),
        ({"messages": [{"speaker": "A", "says": "hi"}]}, r"messages\[0\]: a message needs `role`.*speaker, says"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content must be text, found list"),
        ({"text": "\ud83d"}, "surrogate"),
    ],
)
def test_wrong_types_are_explained(tmp_path, row, words):
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=words):
        load_records("data.jsonl", tmp_path)


def test_an_empty_data_set_is_refused(tmp_path):
    (tmp_path / "data.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match=r"data\.jsonl: the data set is empty"):
        load_records("data.jsonl", tmp_path)


def test_a_missing_file_offers_the_nearest(write, tmp_path):
    write(PAIR, name="train.jsonl")
    with pytest.raises(DataError, match=r"no file .*trian\.jsonl") as caught:
        load_records("trian.jsonl", tmp_path)
    assert "train.jsonl" in caught.value.hint


def test_a_mistyped_bundled_data_set_offers_its_name(tmp_path):
    with pytest.raises(DataError, match="no file") as caught:
        load_records("order", tmp_path)
    assert "bundled data set `orders`" in caught.value.hint


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_cells_separated_by_something_else_are_read_and_that_is_noted(tmp_path, sign):
    (tmp_path / "data.csv").write_text(f"prompt{sign}completion\na, b{sign}b\n")
    scanned = scan("data.csv", tmp_path)
    assert [record.fields for record in scanned.records] == [{"prompt": "a, b", "completion": "b"}]
    assert scanned.notes == [f"data.csv: its cells are separated by {sign!r}"]


def test_unknown_kinds_of_file_and_folders_are_refused(tmp_path):
    (tmp_path / "data.docx").write_text("<a/>")
    with pytest.raises(DataError, match=r"`\.docx` is not a format"):
        load_records("data.docx", tmp_path)
    with pytest.raises(DataError, match="is a folder without a data file"):
        load_records(str(tmp_path), tmp_path)


def test_an_unknown_key_of_a_source_offers_the_nearest(write, tmp_path):
    with pytest.raises(RecipeError, match="no key `colums`") as caught:
        load_records({"path": write(PAIR), "colums": {}}, tmp_path)
    assert "columns" in caught.value.hint


def test_json_csv_and_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "data.json").write_text(json.dumps([PAIR]))
    (tmp_path / "data.csv").write_text('prompt,completion\n"2+2,\nplease?",4\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": TALK}]), tmp_path / "data.parquet")
    assert load_records("data.json", tmp_path)[0].origin == "data.json[1]"
    assert load_records("data.csv", tmp_path)[0].fields["prompt"] == "2+2,\nplease?"
    assert load_records("data.parquet", tmp_path)[0].fields["messages"] == TALK


def test_broken_json_csv_and_parquet_name_the_place(tmp_path):
    (tmp_path / "data.json").write_text('[\n{"a": 1},\n{"b"}]')
    with pytest.raises(DataError, match=r"data\.json:3: not valid JSON"):
        load_records("data.json", tmp_path)
    (tmp_path / "one.json").write_text("3")
    with pytest.raises(DataError, match="must hold a list") as caught:
        load_records("one.json", tmp_path)
    assert ".jsonl" in caught.value.hint
    (tmp_path / "data.csv").write_text("prompt,completion\na,b\na,b,c\n")
    with pytest.raises(DataError, match=r"data\.csv:3: the number of cells"):
        load_records("data.csv", tmp_path)
    (tmp_path / "data.parquet").write_bytes(b"PAR0")
    with pytest.raises(DataError, match=r"data\.parquet is not a readable parquet"):
        load_records("data.parquet", tmp_path)


def test_ids_are_the_files_own_or_the_contents(write, tmp_path):
    own = load_records(write({**PAIR, "id": 7}, {**PAIR, "id": "b"}), tmp_path)
    assert [record.id for record in own] == ["7", "b"]
    for name in (write({**PAIR, "id": 1}, {**PAIR, "id": 1}), write(PAIR, {**PAIR, "note": "other column"})):
        first, second = load_records(name, tmp_path)
        assert first.id == content_hash(first)[:16]
        assert second.id == f"{first.id}-2"


def test_limits_are_nested_and_keep_the_order(write, tmp_path):
    name = write(*({"text": f"record {index}"} for index in range(40)))
    every = [record.id for record in load_records(name, tmp_path)]
    few, more = ([record.id for record in load_records({"path": name, "limit": n}, tmp_path)] for n in (5, 20))
    assert len(few) == 5 and len(more) == 20 and set(few) < set(more)
    assert more == [name for name in every if name in set(more)] != every[:20]


def test_the_doctor_reads_past_every_bad_line(write, tmp_path):
    name = write(PAIR, b"{", {"prompt": "q", "completion": ""}, b'{"text": "\xff"}', {"a": 1}, {"text": "fine"})
    records, problems = scan_records(name, tmp_path)
    assert [record.origin for record in records] == ["data.jsonl:1", "data.jsonl:6"]
    assert [problem.message.split(": ")[0] for problem in problems] == [f"data.jsonl:{line}" for line in (2, 3, 4, 5)]


def test_a_hub_id_that_is_not_there_is_one_clear_error(tmp_path, monkeypatch):
    import datasets

    def fails(*_, **__):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", fails)
    with pytest.raises(DataError, match=r"no file `someone/some-set`.*no network"):
        load_records("someone/some-set", tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: [{"text": f"{name} {config} {split}"}])
    source = {"path": "someone/some-set", "config": "main", "split": "test"}
    assert load_records(source, tmp_path)[0].fields["text"] == "someone/some-set main test"


def test_a_generated_data_set_is_named_by_kind(tmp_path):
    records = load_records({"kind": "sums"}, tmp_path)
    assert len({record.id for record in records}) == len(records) > 0
    assert records == load_records({"kind": "sums"}, tmp_path)
    with pytest.raises(RecipeError, match="no dataset called `sumz`"):
        load_records({"kind": "sumz"}, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
COLUMN = st.sampled_from(["prompt", "completion", "text", "messages", "chosen", "rejected", "id", "tools", "extra"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.dictionaries(COLUMN, JSON | st.just(TALK), max_size=4), max_size=6))
def test_any_file_gives_records_or_one_clear_error(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("any") / "any.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    records, problems = scan_records(path.name, path.parent)
    assert all(isinstance(problem, LuthierError) and "any.jsonl" in problem.message for problem in problems)
    assert len({record.id for record in records}) == len(records)
    try:
        assert load_records(path.name, path.parent) == records
    except DataError as error:
        assert error.message in {problem.message for problem in problems}
    else:
        assert not problems


def test_an_unknown_shape_far_behind_the_sample_has_a_hint_too(tmp_path):
    rows = [{"prompt": f"{n}?", "completion": f"{n}"} for n in range(2100)] + [{"question": "Who?", "answer": "Ann"}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"data\.jsonl:2101: no known shape") as caught:
        load_records("data.jsonl", tmp_path)
    assert "columns: {prompt: question, completion: answer}" in caught.value.hint


def test_columns_that_would_lose_the_other_records_are_not_offered(tmp_path):
    rows = [{"prompt": f"{n}?", "completion": "a"} if n % 2 else {"question": f"{n}?", "answer": "a"} for n in range(9)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    guessed = scan("data.jsonl", tmp_path).guess
    assert guessed.columns == {} and "not the 4 that are read already" in guessed.reason
    mixed = [{"prompt": f"{n}?", "completion": n if n % 2 else "a"} for n in range(9)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in mixed))
    assert scan("data.jsonl", tmp_path).guess.columns == {"prompt": "prompt", "completion": "completion"}


def test_a_format_that_no_library_reads_is_refused_in_a_few_words(tmp_path):
    (tmp_path / "data.xlsx").write_bytes(b"\x00\xff" * 50)
    with pytest.raises(DataError, match="is not a format of data files") as caught:
        load_records("data.xlsx", tmp_path)
    assert len(caught.value.message) < 400 + len(str(tmp_path)) and "spreadsheet" in caught.value.hint
