"""Run the tasks of a comparison: one process each, one after the other; a crash of one loses no other."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from luthier.compare.plan import Task
from luthier.compare.runs import status_of, tail_of_log
from luthier.errors import RunError
from luthier.processes.launch import Process, Workers
from luthier.run_folder import read_json, read_jsonl, write_json

POLL_SECONDS = 0.25
PATIENCE_SECONDS = 120  # for a stopped run to save its checkpoint


class Watcher(Protocol):
    """Shows the progress of a comparison; changes nothing."""

    def begin(self, task: Task) -> None: ...

    def update(self, task: Task, line: Mapping[str, Any] | None, seconds: float) -> None:
        """`line` is the newest of progress.jsonl, None until the run wrote one."""
        ...

    def end(self, task: Task, status: str, seconds: float) -> None: ...

    def stopping(self, task: Task) -> None:
        """The run was asked to save and end; a second Ctrl-C ends it at once."""
        ...

    def skip(self, task: Task) -> None:
        """An earlier call has finished the task."""
        ...


class Stopped(RunError):
    """The user stopped the comparison; all that was computed is kept."""

    exit_code = 130


def execute(tasks: Sequence[Task], folder: Path, watcher: Watcher, workers: Workers) -> dict[str, int]:
    """Run each task that is not finished, in order; a failed run is recorded in its run.json and the next one starts.

    Args:
        tasks: in the order in which they run.
        folder: the comparison's.
        watcher: is called at every event of every run.
        workers: start a run's process when its folder has a task.json.

    Returns:
        Exit code by the folder of each task that ran; negative for a signal.

    Raises:
        Stopped: on Ctrl-C, SIGTERM or a closed terminal, after the run in progress has saved its state.
    """
    codes = {}
    with _stop_signals():
        for task in tasks:
            path = folder / task.folder
            if status_of(path, task)[0] == "done":
                watcher.skip(task)
                continue
            _prepare_folder(path, task, folder / "shared")
            codes[task.folder] = _run(path, task, watcher, workers)
    return codes


def _prepare_folder(path: Path, task: Task, shared: Path) -> None:
    """Write task.json; the folder of another task with this path is renamed, because it may hold hours of work."""
    described = path / "task.json"
    if described.is_file() and read_json(described).get("fingerprint") != task.fingerprint:
        number = 1
        while (renamed := path.with_name(f"{path.name}.before-{number}")).exists():
            number += 1
        path.rename(renamed)
    path.mkdir(parents=True, exist_ok=True)
    shared.mkdir(parents=True, exist_ok=True)
    write_json(described, task.to_json(shared))


def _run(path: Path, task: Task, watcher: Watcher, workers: Workers) -> int:
    started = time.monotonic()
    # A resumed run appends to the files of its last try, which must not count as its own.
    before = _record(path)
    old_lines = len(read_jsonl(path / "progress.jsonl"))

    watcher.begin(task)
    process = workers.start(path)
    try:
        while (code := process.wait(POLL_SECONDS)) is None:
            lines = read_jsonl(path / "progress.jsonl")[old_lines:]
            watcher.update(task, lines[-1] if lines else None, time.monotonic() - started)
    except KeyboardInterrupt:
        watcher.stopping(task)
        _stop(process)
        watcher.end(task, "stopped", time.monotonic() - started)
        raise Stopped(f"Stopped during {task.folder}; everything computed so far is kept.") from None

    status = _conclude(path, task, before, code)
    watcher.end(task, status, time.monotonic() - started)
    return code


def _stop(process: Process) -> None:
    """Ask the process to end and wait for its checkpoint; a second Ctrl-C, or a wait that is too long, kills it."""
    process.terminate()
    try:
        if process.wait(PATIENCE_SECONDS) is not None:
            return
    except KeyboardInterrupt:
        pass
    process.kill()
    process.wait()


def _conclude(path: Path, task: Task, before: Mapping[str, Any] | None, code: int) -> str:
    """The status of a run that ended; its run.json is written here if the run could not do so itself."""
    record = _record(path)
    # A killed process leaves the run.json of the try before, whose status says nothing of this one.
    fresh = record if record is not None and record != before else {}
    status = fresh.get("status")
    if code == 0 and status == "done":
        return "done"
    if status not in ("failed", "stopped"):
        status = "failed"
    error = fresh.get("error") or describe_exit(code, tail_of_log(path))
    write_json(path / "run.json", {**fresh, "status": status, "error": error, "method": task.method, "seed": task.seed})
    return status


def describe_exit(code: int, log: Sequence[str] = ()) -> str:
    """One sentence on why a process ended.

    Args:
        code: its exit code, negative for a signal.
        log: the last lines of its log; a Luthier error among them is the sentence.
    """
    errors = [number for number, line in enumerate(log) if line.startswith("error: ")]
    if errors:
        return " ".join(line.strip() for line in log[errors[-1] :]).removeprefix("error: ")
    last_words = f" Its log ends with: {log[-1]}" if log else " Its log is empty."
    if code >= 0:
        return f"The process ended with exit code {code} and no result.{last_words}"
    name = signal.Signals(-code).name
    hint = " (often the machine ran out of memory)" if name == "SIGKILL" else ""
    return f"The process was ended by {name}{hint}.{last_words}"


def _record(path: Path) -> dict[str, Any] | None:
    return read_json(path / "run.json") if (path / "run.json").is_file() else None


@contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal stop a comparison as Ctrl-C does."""
    # Python lets only the main thread set handlers; a caller in another thread keeps its own.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = (signal.SIGTERM, signal.SIGHUP)
    previous = {name: signal.signal(name, _interrupt) for name in names}
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


def _interrupt(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt
