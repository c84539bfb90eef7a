import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier import run_folder as records
from luthier.errors import RunError
from luthier.run_folder import RunFolder, append_jsonl, read_json, read_jsonl, write_json

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(records.__file__).parents[1])}


def test_folders_are_numbered(tmp_path):
    assert [RunFolder.create(tmp_path, "a").path.name for _ in range(3)] == ["1", "2", "3"]
    (tmp_path / "a" / "11").mkdir()
    (tmp_path / "a" / "notes").mkdir()
    assert RunFolder.create(tmp_path, "a").path == tmp_path / "a" / "12"


def test_many_processes_get_many_folders(tmp_path):
    code = "import sys; from pathlib import Path; from luthier.run_folder import RunFolder\n"
    code += "for _ in range(20): RunFolder.create(Path(sys.argv[1]), 'a')"
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=ENVIRONMENT) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert sorted(int(path.name) for path in (tmp_path / "a").iterdir()) == list(range(1, 61))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RunError, match="cannot be written"):
        RunFolder.create(tmp_path / "out", "a")


def test_opening_what_is_not_there(tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        RunFolder.open(tmp_path / "gone")
    assert RunFolder.open(tmp_path).path == tmp_path


def test_two_writers_of_one_run(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.lock(), pytest.raises(RunError, match=f"process id {os.getpid()}"), RunFolder(tmp_path).lock():
        pass
    with folder.lock():
        pass


def test_the_lock_goes_with_a_killed_process(tmp_path):
    code = "import sys, time; from pathlib import Path; from luthier.run_folder import RunFolder\n"
    code += "with RunFolder(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"process id {process.pid}"), RunFolder(tmp_path).lock():
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    with RunFolder(tmp_path).lock():
        pass


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"ü": [1, None, "x"]})
    assert read_json(path) == {"ü": [1, None, "x"]}
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_numbers_that_json_lacks_become_null(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), 1.5], "c": (1, 2)})
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [None, 1.5], "c": [1, 2]}


def test_a_lone_surrogate_does_not_stop_a_run(tmp_path):
    append_jsonl(tmp_path / "a.jsonl", {"prediction": "\ud800"})
    assert len(read_jsonl(tmp_path / "a.jsonl")) == 1


@pytest.mark.parametrize("content", [None, "{", "\xff"])
def test_missing_or_damaged_json(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(RunError, match=r"a\.json"):
        read_json(path)


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_no_space_left_keeps_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(records.os, "fsync", full_disk)
    with pytest.raises(RunError, match=r"No space left .*a\.json\. The previous version of the file is unchanged"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_no_space_left_for_a_first_file(tmp_path, monkeypatch):
    monkeypatch.setattr(records.os, "fsync", full_disk)
    with pytest.raises(RunError, match="Nothing was written"):
        write_json(tmp_path / "a.json", {})
    assert list(tmp_path.iterdir()) == []


def test_no_space_left_in_the_middle_of_a_line(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    append_jsonl(path, {"a": 1})

    def half(handle, content):
        handle.write(content[: len(content) // 2])
        full_disk()

    with monkeypatch.context() as patch:
        patch.setattr(records, "_write_all", half)
        with pytest.raises(RunError, match="All lines written before are kept"):
            append_jsonl(path, {"a": 2})
    assert path.read_text() == '{"a": 1}\n'
    append_jsonl(path, {"a": 3})
    assert read_jsonl(path) == [{"a": 1}, {"a": 3}]


def test_a_torn_last_line_is_left_out_and_then_cut_off(tmp_path):
    path = tmp_path / "a.jsonl"
    for number in range(3):
        append_jsonl(path, {"a": number})
    torn = path.read_bytes()[:-3]
    path.write_bytes(torn)
    assert read_jsonl(path) == [{"a": 0}, {"a": 1}]
    append_jsonl(path, {"a": 9})
    assert read_jsonl(path) == [{"a": 0}, {"a": 1}, {"a": 9}]


@pytest.mark.parametrize("length", [1, 4095, 4096, 4097, 20000])
def test_a_torn_line_of_any_length(tmp_path, length):
    path = tmp_path / "a.jsonl"
    append_jsonl(path, {"a": "b" * 5000})
    with path.open("ab") as handle:
        handle.write(b"x" * length)
    append_jsonl(path, {"a": 1})
    assert [len(str(line)) for line in read_jsonl(path)] == [5009, 8]


def test_a_file_of_one_torn_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1')
    assert read_jsonl(path) == []
    append_jsonl(path, {"a": 2})
    assert read_jsonl(path) == [{"a": 2}]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(RunError, match=r"a\.jsonl:2 is damaged"):
        read_jsonl(path)


def test_nothing_written_yet(tmp_path):
    assert read_jsonl(tmp_path / "a.jsonl") == []


def test_lines_are_json(tmp_path):
    append_jsonl(tmp_path / "a.jsonl", {"text": "two\nlines", "loss": float("nan")})
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"text": "two\nlines", "loss": None}]


def test_a_folder_that_cannot_be_locked(tmp_path):
    with pytest.raises(RunError, match="cannot be written"), RunFolder(tmp_path / "gone").lock():
        pass


def test_no_link_in_a_run_folder_is_written_through(tmp_path):
    """A received folder may hold links to files of the user."""
    mine, folder = tmp_path / "mine.txt", tmp_path / "run"
    mine.write_text("precious\n")
    folder.mkdir()
    (folder / ".lock").symlink_to(mine)
    (folder / "progress.jsonl").symlink_to(mine)
    with pytest.raises(RunError, match=r"\.lock"), RunFolder(folder).lock():
        pass
    with pytest.raises(RunError, match=r"progress\.jsonl"):
        append_jsonl(folder / "progress.jsonl", {"a": 1})
    assert mine.read_text() == "precious\n"
