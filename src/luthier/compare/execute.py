"""Running tasks: one process each, one after the other; a crash of one loses no other."""

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
    """Is told what happens; changes nothing."""

    def begin(self, task: Task) -> None: ...

    def update(self, task: Task, line: Mapping[str, Any] | None, seconds: float) -> None:
        """`line` is the newest of progress.jsonl, None until the run wrote one."""
        ...

    def end(self, task: Task, status: str, seconds: float) -> None: ...

    def stopping(self, task: Task) -> None:
        """The run was asked to save and end; a second Ctrl-C ends it at once."""
        ...

    def skip(self, task: Task) -> None:
        """The task was done before."""
        ...


class Stopped(RunError):
    """The user stopped the comparison; all that was computed is kept."""

    exit_code = 130


def execute(tasks: Sequence[Task], folder: Path, watcher: Watcher, workers: Workers) -> dict[str, int]:
    """Run what is not done yet, in order; a failed run is recorded in its run.json and the next one starts.

    Args:
        tasks: in the order they run.
        folder: the comparison's.
        watcher: is told about every run.
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
            _make_ready(path, task, folder / "shared")
            codes[task.folder] = _run(path, task, watcher, workers)
    return codes


def _make_ready(path: Path, task: Task, shared: Path) -> None:
    """A folder with this task's task.json; what another task left there is set aside, not deleted."""
    described = path / "task.json"
    if described.is_file() and read_json(described).get("fingerprint") != task.fingerprint:
        number = 1
        while (aside := path.with_name(f"{path.name}.before-{number}")).exists():
            number += 1
        path.rename(aside)
    path.mkdir(parents=True, exist_ok=True)
    shared.mkdir(parents=True, exist_ok=True)
    write_json(described, task.to_json(shared))


def _run(path: Path, task: Task, watcher: Watcher, workers: Workers) -> int:
    started = time.monotonic()
    before = _record(path)
    seen = len(read_jsonl(path / "progress.jsonl"))
    watcher.begin(task)
    process = workers.start(path)
    try:
        while (code := process.wait(POLL_SECONDS)) is None:
            lines = read_jsonl(path / "progress.jsonl")[seen:]
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
    """Ask it to end, then wait for the checkpoint; a second Ctrl-C or too long a wait ends it at once."""
    process.terminate()
    try:
        if process.wait(PATIENCE_SECONDS) is not None:
            return
    except KeyboardInterrupt:
        pass
    process.kill()
    process.wait()


def _conclude(path: Path, task: Task, before: Mapping[str, Any] | None, code: int) -> str:
    """The status of a run that ended, written for it when it could not do so itself."""
    record = _record(path)
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
    """What an exit code says, in words, with what the log ends with: our own error, or its last line."""
    errors = [place for place, line in enumerate(log) if line.startswith("error: ")]
    if errors:
        return " ".join(line.strip() for line in log[errors[-1] :]).removeprefix("error: ")
    said = f" Its log ends with: {log[-1]}" if log else " Its log is empty."
    if code >= 0:
        return f"The process ended with exit code {code} and no result.{said}"
    name = signal.Signals(-code).name
    hint = " (often the machine ran out of memory)" if name == "SIGKILL" else ""
    return f"The process was ended by {name}{hint}.{said}"


def _record(path: Path) -> dict[str, Any] | None:
    return read_json(path / "run.json") if (path / "run.json").is_file() else None


@contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal stop a comparison as Ctrl-C does (where signals can be caught)."""
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
