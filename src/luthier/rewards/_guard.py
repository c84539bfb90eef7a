"""A limit of time around code of others, and a process of its own for code that nobody has read."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LONGEST_OUTPUT = 20_000


class TooSlow(BaseException):
    """The limit of time has passed. No Exception, so that no `except Exception` of a reward swallows it."""


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """The result of `work()`; it is broken off after `seconds`.

    In the main thread an alarm interrupts it wherever Python runs or waits. Elsewhere, and where the system has
    no alarms, it runs in a thread that is abandoned when time is up.

    Raises:
        TooSlow: time is up. Other exceptions of `work` pass through.
    """
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        return _with_alarm(seconds, work)
    found: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            found.append((True, work()))
        except BaseException as error:
            found.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found:
        raise TooSlow(f"no result after {seconds:g} s")
    good, value = found[0]
    if good:
        return value
    raise value


def _with_alarm(seconds: float, work: Callable[[], Any]) -> Any:
    def ring(_number: int, _frame: Any) -> None:
        raise TooSlow(f"no result after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Ran:
    """How a program ended: its exit status (None: time was up), and the beginning of what it wrote."""

    status: int | None
    output: str


def run_python(source: str, seconds: float, megabytes: int) -> Ran:
    """Run a Python program in a process of its own, in an empty folder, with an empty environment.

    Its processor time, memory, files and number of processes are limited, and it and its children are killed when
    time is up. This keeps mistakes and runaway programs away from the run; it is no protection from a program that
    means harm (files that the user may read can be read, and so can the network): for that, use a container.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", _LIMITED, str(seconds), str(megabytes)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"PATH": os.defpath},
            start_new_session=True,
        )
        try:
            child.communicate(source.encode(errors="surrogatepass"), timeout=seconds)
            status: int | None = child.returncode
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(child)
        output.seek(0)
        return Ran(status, output.read(LONGEST_OUTPUT).decode(errors="replace"))


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the process and all that it started; its session is its own."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()
    child.wait()
    if child.stdin is not None:
        child.stdin.close()


_LIMITED = """
import sys
seconds, megabytes = float(sys.argv[1]), int(sys.argv[2])
source = sys.stdin.buffer.read().decode()
try:
    import resource
    for what, most in (
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_AS, megabytes << 20),
        (resource.RLIMIT_FSIZE, 1 << 24),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
except ImportError:
    pass
sys.argv = ["answer.py"]
exec(compile(source, "answer.py", "exec"), {"__name__": "__main__"})
"""
