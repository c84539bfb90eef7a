import json
import os
import signal
import threading
import time

import pytest

from luthier.compare.execute import Stopped, describe_exit, execute
from luthier.compare.plan import plan
from luthier.compare.runs import read_run
from luthier.processes.launch import Workers


class Silent:
    def __init__(self):
        self.told = []

    def begin(self, task):
        self.told.append(("begin", task.folder))

    def update(self, task, line, seconds):
        self.told.append(("update", line))

    def end(self, task, status, seconds):
        self.told.append((status, task.folder))

    def stopping(self, task):
        self.told.append(("stopping", task.folder))

    def skip(self, task):
        self.told.append(("skip", task.folder))


def orders(monkeypatch, **given):
    monkeypatch.setenv("FAKE_ORDERS", json.dumps(given))


@pytest.fixture
def worker(worker):
    return Workers(worker)


@pytest.fixture
def tasks(recipe):
    return plan(recipe, methods=["sft", "dft", "asft"]).runs({})


def test_a_crash_or_a_kill_loses_no_other_run(tasks, tmp_path, worker, monkeypatch):
    orders(monkeypatch, crash=["/sft/"], kill=["/dft/"], items=5)
    home = tmp_path / "out"
    codes = execute(tasks, home, Silent(), worker)
    assert codes == {"sft/seed-0": 1, "dft/seed-0": -9, "asft/seed-0": 0}
    crashed, killed, other = (read_run(home / task.folder, task) for task in tasks)
    assert "exit code 1" in crashed.error and "the loss exploded at record r-17" in crashed.error
    assert crashed.log[-1] == "RuntimeError: the loss exploded at record r-17"
    assert killed.status == "failed" and other.done
    assert "SIGKILL" in killed.error and "memory" in killed.error


def test_the_workers_own_words_are_kept(tasks, tmp_path, worker, monkeypatch):
    orders(monkeypatch, refuse=["sft/"])
    assert execute(tasks[:1], tmp_path / "out", Silent(), worker) == {"sft/seed-0": 2}
    assert read_run(tmp_path / "out/sft/seed-0", tasks[0]).error == "data.jsonl:3 has no `messages`."


def test_done_runs_are_skipped_and_failed_ones_start_again(tasks, tmp_path, worker, monkeypatch):
    home = tmp_path / "out"
    orders(monkeypatch, kill=["dft/seed-0"], items=5)
    execute(tasks[:2], home, Silent(), worker)
    orders(monkeypatch, items=5)
    watcher = Silent()
    assert execute(tasks[:2], home, watcher, worker) == {"dft/seed-0": 0}
    assert ("skip", "sft/seed-0") in watcher.told and ("done", "dft/seed-0") in watcher.told
    assert (home / "sft/seed-0/started.txt").read_text().count("started") == 1
    assert (home / "dft/seed-0/started.txt").read_text().count("started") == 2


def test_a_changed_recipe_sets_the_old_run_aside(recipe, tmp_path, worker, monkeypatch):
    orders(monkeypatch, items=5)
    home = tmp_path / "out"
    execute(plan(recipe, methods=["sft"]).runs({}), home, Silent(), worker)
    changed = plan(recipe, methods=["sft"], overrides=["train.optimizer.lr=1e-3"]).runs({})
    assert read_run(home / "sft/seed-0", changed[0]).status == "missing"
    assert execute(changed, home, Silent(), worker) == {"sft/seed-0": 0}
    assert (home / "sft/seed-0.before-1/run.json").is_file()
    assert read_run(home / "sft/seed-0", changed[0]).done


@pytest.fixture
def interruptible():
    """Ctrl-C as in a foreground process: a shell's background jobs start with SIGINT ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_stopping_asks_the_run_to_save_and_starts_no_other(tasks, tmp_path, worker, monkeypatch, name):
    orders(monkeypatch, sleep=5, items=5)
    home, watcher = tmp_path / "out", Silent()

    def interrupt():
        while not (home / "sft/seed-0/progress.jsonl").is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), name)

    threading.Thread(target=interrupt).start()
    with pytest.raises(Stopped, match="everything computed so far is kept"):
        execute(tasks, home, watcher, worker)
    assert watcher.told[-2:] == [("stopping", "sft/seed-0"), ("stopped", "sft/seed-0")]
    assert json.loads((home / "sft/seed-0/run.json").read_text())["status"] == "stopped"
    assert not (home / "dft").exists()


def test_progress_reaches_the_watcher(tasks, tmp_path, worker, monkeypatch):
    orders(monkeypatch, sleep=0.2, items=5)
    watcher = Silent()
    execute(tasks[:1], tmp_path / "out", watcher, worker)
    phases = [line["phase"] for kind, line in watcher.told if kind == "update" and line]
    assert phases and set(phases) == {"train"}


def test_a_worker_that_ends_well_without_a_result_failed(tasks, tmp_path):
    assert execute(tasks[:1], tmp_path / "out", Silent(), Workers(["true"])) == {"sft/seed-0": 0}
    assert read_run(tmp_path / "out/sft/seed-0", tasks[0]).status == "failed"


def test_exits_in_words():
    assert "SIGSEGV" in describe_exit(-signal.SIGSEGV)
    assert describe_exit(3, ("ValueError: no",)).endswith("Its log ends with: ValueError: no")
    ours = ("loading", "error: There is no model x.", "  Did you mean `y`?")
    assert describe_exit(2, ours) == "There is no model x. Did you mean `y`?"
