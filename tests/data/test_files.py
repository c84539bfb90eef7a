"""Files of records in every format: the same records, or an error that names the file and, where it can, the line."""

import bz2
import csv
import gzip
import json
import lzma

import pytest

from luthier.data.sources import NotUtf8, files_of, load_records, scan
from luthier.errors import DataError

ROWS = [{"prompt": f"question {number}?", "completion": f"answer {number}"} for number in range(6)]


def jsonl(rows=ROWS):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows=ROWS):
    import pyarrow

    return pyarrow.Table.from_pylist(rows)


def parquet(path, rows=ROWS):
    import pyarrow.parquet

    pyarrow.parquet.write_table(table(rows), path)


def fields(source, base):
    return [dict(record.fields) for record in load_records(source, base)]


def plain_text(name):
    lines = [["prompt", "completion"], *([*row.values()] for row in ROWS)]
    forms = {
        "a.jsonl": jsonl(),
        "a.ndjson": jsonl(),
        "a.json": json.dumps(ROWS).encode(),
        "b.json": jsonl(),
        "c.json": json.dumps({"version": "1.1", "data": ROWS}).encode(),
        "d.json": json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}).encode(),
        "e.json": json.dumps({key: {str(n): row[key] for n, row in enumerate(ROWS)} for key in ROWS[0]}).encode(),
        "f.json": json.dumps({"train": ROWS, "test": ROWS[:1]}).encode(),
        "b.jsonl": json.dumps(ROWS, indent=1).encode(),
        "a.csv": "".join(",".join(line) + "\n" for line in lines).encode(),
        "a.tsv": "".join("\t".join(line) + "\r\n" for line in lines).encode(),
        "bom.csv": "".join(";".join(line) + "\r\n" for line in lines).encode("utf-8-sig"),
        "old.csv": "".join(",".join(line) + "\r" for line in lines).encode(),
        "gap.csv": ("\n" + "\n\n".join(",".join(line) for line in lines) + "\n\n").encode(),
    }
    return forms[name]


TEXTS = ["a.jsonl", "a.ndjson", "a.json", "b.json", "c.json", "d.json", "e.json", "f.json", "b.jsonl"]
TABLES = ["a.csv", "a.tsv", "bom.csv", "old.csv", "gap.csv"]


@pytest.mark.parametrize("name", [*TEXTS, *TABLES])
def test_texts_hold_the_same_records_packed_or_not(tmp_path, name):
    content = plain_text(name)
    (tmp_path / name).write_bytes(content)
    assert fields(name, tmp_path) == ROWS
    for suffix, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        (tmp_path / f"{name}{suffix}").write_bytes(pack(content))
        assert fields(f"{name}{suffix}", tmp_path) == ROWS
    (tmp_path / f"named_wrong_{name}").write_bytes(gzip.compress(content, mtime=0))
    assert fields(f"named_wrong_{name}", tmp_path) == ROWS


def test_zstd_is_read_where_a_library_has_it(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    with pyarrow.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
        file.write(jsonl())
    assert fields("a.jsonl.zst", tmp_path) == ROWS


def test_parquet_arrow_and_saved_data_sets_hold_the_same_records(tmp_path):
    import datasets
    import pyarrow
    import pyarrow.feather

    parquet(tmp_path / "a.parquet")
    pyarrow.feather.write_feather(table(), tmp_path / "a.feather")
    with pyarrow.ipc.new_stream(str(tmp_path / "stream.arrow"), table().schema) as writer:
        writer.write_table(table(), max_chunksize=2)
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": saved, "test": saved.select([0])}).save_to_disk(tmp_path / "several")
    datasets.DatasetDict({"dev": saved}).save_to_disk(tmp_path / "single")
    for name in ("a.parquet", "a.feather", "stream.arrow", "saved", "several", "single"):
        assert fields(name, tmp_path) == ROWS, name
    assert fields({"path": "several", "split": "test"}, tmp_path) == ROWS[:1]
    assert load_records("stream.arrow", tmp_path)[5].origin == "stream.arrow[6]"
    with pytest.raises(DataError, match="several has no split `dev`") as caught:
        load_records({"path": "several", "split": "dev"}, tmp_path)
    assert "train, test" in caught.value.hint


def test_lists_patterns_and_folders_are_read_in_order(tmp_path):
    (tmp_path / "x").mkdir()
    for number in range(3):
        (tmp_path / "x" / f"part-{number}.jsonl").write_bytes(jsonl(ROWS[2 * number : 2 * number + 2]))
    (tmp_path / "x" / "README.md").write_text("about")
    sources = [
        ["x/part-0.jsonl", "x/part-1.jsonl", "x/part-2.jsonl"],
        "x/part-*.jsonl",
        "x",
        {"path": ["x/*-[012].jsonl"]},
    ]
    for source in sources:
        assert fields(source, tmp_path) == ROWS
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "part-0.jsonl").write_bytes(b'{"prompt": "z", "completion": "z"}\n{"bad": 1}\n')
    problems = scan(["x/part-0.jsonl", "y/part-0.jsonl"], tmp_path).problems
    assert [problem.message.partition(": ")[0] for problem in problems] == ["y/part-0.jsonl:2"]
    assert [path.name for path in files_of({"path": "x"}, tmp_path)] == ["part-0.jsonl", "part-1.jsonl", "part-2.jsonl"]
    with pytest.raises(DataError, match=r"No file matches .*none-\*\.jsonl"):
        load_records("none-*.jsonl", tmp_path)


def test_a_folder_never_mixes_its_splits(tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    parquet(tmp_path / "set" / "data" / "train-00000-of-00002.parquet", ROWS[:2])
    parquet(tmp_path / "set" / "data" / "train-00001-of-00002.parquet", ROWS[2:4])
    parquet(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", ROWS[4:])
    (tmp_path / "set" / "dataset_infos.json").write_text("{}")
    scanned = scan("set", tmp_path)
    assert [record.fields["prompt"] for record in scanned.records] == [row["prompt"] for row in ROWS[:4]]
    assert "data.test: {path: set, split: test}" in scanned.notes[0]
    assert fields({"path": "set", "split": "test"}, tmp_path) == ROWS[4:]
    with pytest.raises(DataError, match="no files of the split `validation`") as caught:
        load_records({"path": "set", "split": "validation"}, tmp_path)
    assert "`test`, `train`" in caught.value.hint
    (tmp_path / "set" / "train.jsonl").write_bytes(jsonl())
    with pytest.raises(DataError, match=r"several formats \(\.jsonl, \.parquet\)"):
        load_records("set", tmp_path)


def test_a_file_of_another_format_is_read_by_the_library(tmp_path):
    (tmp_path / "a.txt").write_text("first line\nsecond line\n")
    scanned = scan("a.txt", tmp_path)
    assert [record.fields["text"] for record in scanned.records] == ["first line", "second line"]
    assert "with the columns text" in scanned.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"", r"a\.jsonl: the data set is empty: the file has 0 bytes"),
        ("a.csv", b"", r"a\.csv: the data set is empty: the file has 0 bytes"),
        (
            "a.jsonl.gz",
            gzip.compress(jsonl() * 5000, mtime=0)[:-900],
            r"a\.jsonl\.gz: the compressed file .*after \d+ records",
        ),
        ("a.csv.gz", gzip.compress(plain_text("a.csv"), mtime=0)[:-30], r"a\.csv\.gz: the compressed file is cut off"),
        ("a.csv", b"prompt,completion,prompt\na,b,c\n", r"a\.csv:1: the header names the column 'prompt' 2 times"),
        ("a.csv", b'prompt,completion\n"a,b\n', r"a\.csv:2: not valid CSV"),
        ("a.csv", "prompt,completion\na,b\n".encode("utf-16"), r"a\.csv:1: byte 1 .*UTF-16"),
        ("a.jsonl", '{"prompt": "a", "completion": "b"}\n'.encode("utf-16") * 3, r"a\.jsonl:1: byte 1 .*UTF-16"),
        ("a.jsonl", b"ELF\x00\x01\xff\n\xfe\x00", r"a\.jsonl is no text: .* zero bytes"),
        ("a.csv", b"\x7fELF\x00\x01\xff\n\xfe\x00", r"a\.csv is no text: .* zero bytes"),
        ("a.json", b"\x7fELF\x00\x01\xff\n\xfe\x00", r"a\.json is no text: .* zero bytes"),
        ("a.json", json.dumps({"one": ROWS, "two": ROWS}).encode(), r"a\.json holds lists of records under one, two"),
        ("a.jsonl", b"PK\x03\x04 and so on", r"a\.jsonl is a zip archive"),
        ("a.arrow", b"nothing", r"a\.arrow is not a readable Arrow file"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        load_records(name, tmp_path)
    assert caught.value.hint
    assert scan(name, tmp_path).problems[-1].message == caught.value.message


def test_a_parquet_file_that_is_cut_off_is_named(tmp_path):
    parquet(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"a\.parquet is not a readable parquet"):
        load_records("a.parquet", tmp_path)


def test_one_row_of_another_encoding_is_named_and_the_others_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"prompt,completion\n\xc3\xa9,b\n\xe9,d\ne,f\n")
    scanned = scan("a.csv", tmp_path)
    assert [record.fields["prompt"] for record in scanned.records] == ["é", "e"]
    (problem,) = scanned.problems
    assert isinstance(problem, NotUtf8) and problem.message.startswith("a.csv:3: a byte (0xe9)")


def test_quotes_over_lines_and_long_cells_are_one_cell(tmp_path):
    long = "x " * 200_000
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "completion"], ['say "a",\nthen b', long], ["c", "4"]])
    assert fields("a.csv", tmp_path) == [
        {"prompt": 'say "a",\nthen b', "completion": long},
        {"prompt": "c", "completion": "4"},
    ]
    assert load_records("a.csv", tmp_path)[1].origin == "a.csv:4"


def test_a_conversation_alone_in_a_json_file_is_one_record(tmp_path):
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    (tmp_path / "a.json").write_text(json.dumps({"messages": talk}))
    assert fields("a.json", tmp_path) == [{"messages": talk}]


def test_the_hint_about_unknown_columns_comes_from_many_records(tmp_path):
    rows = [{"input": "", "output": "two"}, *({"instruction": "go", "input": f"{n}", "output": "x"} for n in range(9))]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    wanted = "columns: {prompt: [instruction, input], completion: output}"
    with pytest.raises(DataError) as caught:
        load_records("a.jsonl", tmp_path)
    assert caught.value.message.startswith("a.jsonl:1: no known shape") and wanted in caught.value.hint
    scanned = scan("a.jsonl", tmp_path)
    assert len(scanned.problems) == 10 and all(wanted in str(problem.hint) for problem in scanned.problems)


def test_a_limit_holds_few_records_and_keeps_ids(tmp_path):
    rows = [{"id": str(number % 2900), "text": f"text {number}"} for number in range(3000)]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    every = load_records("a.jsonl", tmp_path)
    few = load_records({"path": "a.jsonl", "limit": 50}, tmp_path)
    assert len(few) == 50 and few == [record for record in every if record in few]  # with the ids of the whole file
