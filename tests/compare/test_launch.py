import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import luthier.processes.launch
from luthier.compare.execute import execute
from luthier.compare.plan import plan
from luthier.compare.runs import read_run
from luthier.processes.launch import WORKER, ForkedProcess, SpawnedProcess, Workers, can_fork
from support.runs import recipe, with_words

from .test_execute import Silent

pytestmark = pytest.mark.skipif(not can_fork(), reason="workers are forked on Linux without a GPU alone")


@pytest.fixture(scope="module")
def workers():
    with Workers() as made:
        yield made


def tasks(folder, updates=2, seeds=2):
    made = recipe(with_words(folder), f"budget.updates={updates}")
    return plan(made, methods=["sft"], seeds=seeds).runs({})


def when_training(folder, then):
    """Call `then` in a thread of its own once the run of this folder has done an update."""

    def wait():
        lines = folder / "metrics.jsonl"  # made when the run starts, written to at the first update
        while not lines.is_file() or not lines.stat().st_size:
            time.sleep(0.02)
        then()

    threading.Thread(target=wait, daemon=True).start()


def parent_of(process):
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_a_forked_run_is_the_run_of_a_process_of_its_own(workers, tmp_path):
    home = tmp_path / "out"
    assert execute(tasks(tmp_path), home / "forked", Silent(), workers) == {"sft/seed-0": 0, "sft/seed-1": 0}
    with Workers(WORKER) as own:
        assert execute(tasks(tmp_path, seeds=1), home / "own", Silent(), own) == {"sft/seed-0": 0}
    forked, apart = (home / kind / "sft/seed-0" for kind in ("forked", "own"))
    for name in ("model/adapter_model.safetensors", "evaluation.jsonl"):
        assert (forked / name).read_bytes() == (apart / name).read_bytes()
    losses = [
        [line["loss"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line]
        for run in (forked, apart)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 2


def test_a_killed_run_loses_no_other_and_its_process_is_named(workers, tmp_path):
    first, second = tasks(tmp_path, updates=2000)
    home, killed = tmp_path / "out", []

    def kill():
        killed.append(process_of(home / first.folder))
        os.kill(killed[0], signal.SIGKILL)

    when_training(home / first.folder, kill)
    assert execute([first], home, Silent(), workers) == {first.folder: -signal.SIGKILL}
    assert "SIGKILL" in (read_run(home / first.folder, first).error or "")
    (short,) = tasks(tmp_path, seeds=1)
    assert execute([short], tmp_path / "other", Silent(), workers) == {short.folder: 0}
    assert second.folder != first.folder and not alive(killed[0])


def test_asked_to_end_a_forked_run_saves(workers, tmp_path):
    (task,) = tasks(tmp_path, updates=2000, seeds=1)
    folder = made_ready(task, tmp_path / "out")
    process = workers.start(folder)
    assert isinstance(process, ForkedProcess)
    assert process.wait(0.01) is None
    when_training(folder, process.terminate)
    code = wait(process)
    assert code == 143 and json.loads((folder / "run.json").read_text())["status"] == "stopped"
    assert list(folder.glob("checkpoints/*"))


def test_where_the_forking_process_dies_the_run_ends_and_the_next_one_has_another(tmp_path):
    (task,) = tasks(tmp_path, updates=2000, seeds=1)
    folder, found = made_ready(task, tmp_path / "out"), []

    def kill():
        found.append(process_of(folder))
        os.kill(parent_of(found[0]), signal.SIGKILL)

    with Workers() as workers:
        process = workers.start(folder)
        when_training(folder, kill)
        assert wait(process) == -signal.SIGKILL
        assert gone(found[0])
        (short,) = tasks(tmp_path, seeds=1)
        assert execute([short], tmp_path / "other", Silent(), workers) == {short.folder: 0}


def test_a_run_that_has_not_begun_is_ended_at_once(tmp_path):
    (task,) = tasks(tmp_path, updates=2000, seeds=1)
    folder = made_ready(task, tmp_path / "out")
    with Workers() as workers:
        process = workers.start(folder)
        process.terminate()
        assert process.wait(5) is not None and not (folder / "run.json").exists()


def test_what_a_worker_cannot_do_is_in_its_log(workers, tmp_path):
    process = workers.start(tmp_path)
    assert wait(process) == 1
    assert "task.json" in (tmp_path / "log.txt").read_text()


def test_with_a_gpu_each_run_is_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(luthier.processes.launch, "GPUS", (str(tmp_path),))
    assert not can_fork()
    with Workers() as workers:
        process = workers.start(tmp_path)
        assert isinstance(process, SpawnedProcess) and wait(process) == 1


def made_ready(task, home):
    folder = home / task.folder
    folder.mkdir(parents=True)
    (folder / "task.json").write_text(json.dumps(task.to_json(home / "shared")))
    return folder


def process_of(folder):
    """The worker that writes the log of a run's folder; the process that forks may write there, too."""
    log = str(folder / "log.txt")
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{number}/fd/1") == log and parent_of(number) != os.getpid():
                return int(number)
        except OSError:
            continue
    raise AssertionError(f"no process writes {log}")


def alive(process):
    """Whether it runs: one that nobody has asked for its exit code yet does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(process, seconds=10):
    end = time.monotonic() + seconds
    while alive(process) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(process)


def wait(process, seconds=60):
    end = time.monotonic() + seconds
    while (code := process.wait(0.25)) is None:
        assert time.monotonic() < end
    return code
