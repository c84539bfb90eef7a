"""A time limit for rewards, and a limited process for programs that a model wrote."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

LONGEST_OUTPUT = 20_000
AGAIN = 0.1
"""Seconds after which the alarm of a time limit rings again."""


class TooSlow(BaseException):
    """The time limit has passed. Not an Exception, so that no `except Exception` within a reward catches it."""


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """The result of `work()`, which is interrupted after `seconds`.

    In the main thread an alarm interrupts `work` wherever Python runs or waits, and rings again until `work` has
    ended: a bare `except` may have caught the first. In other threads, and on systems without alarms, `work` runs in a
    thread that is abandoned when time is up. Whatever `work` returns after its time does not count.

    Raises:
        TooSlow: time is up. Other exceptions of `work` pass through.
    """
    started = time.monotonic()
    outcome = _within(seconds, work)
    # The work may have put an alarm of its own in place of ours.
    if time.monotonic() - started > seconds + AGAIN:
        raise TooSlow(f"no result after {seconds:g} s")
    return outcome


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    if hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread():
        return _with_alarm(seconds, work)
    outcomes: list[tuple[bool, Any]] = []

    def run() -> None:
        try:
            outcomes.append((True, work()))
        except BaseException as error:
            outcomes.append((False, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcomes:
        raise TooSlow(f"no result after {seconds:g} s")
    succeeded, outcome = outcomes[0]
    if succeeded:
        return outcome
    raise outcome


def _with_alarm(seconds: float, work: Callable[[], Any]) -> Any:
    rung = False

    def interrupt(_number: int, _frame: Any) -> None:
        nonlocal rung
        rung = True
        raise TooSlow(f"no result after {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
        try:
            outcome = work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if rung:  # caught within `work`
            raise TooSlow(f"no result after {seconds:g} s")
        return outcome
    finally:
        signal.signal(signal.SIGALRM, previous)


@dataclass(frozen=True)
class Ran:
    """How a program ended.

    Attributes:
        status: exit status; None if the program was killed because time was up.
        output: the first LONGEST_OUTPUT bytes of its standard output and error, decoded.
    """

    status: int | None
    output: str


def run_python(source: str, seconds: float, megabytes: int) -> Ran:
    """Run a Python program in a process of its own, in an empty folder, with an empty environment.

    Processor time, memory and the size of files are limited; the program and its children are killed when time is
    up. This protects the run from mistakes and runaway programs. It does not stop a malicious program, which can read
    the user's files and use the network: for that, use a container.

    Args:
        seconds: limit of wall time, and of processor time plus one second.
        megabytes: limit of the address space, in MiB.
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
            # A model may write half of a surrogate pair: the child then fails to read it, and the run goes on.
            child.communicate(source.encode(errors="surrogatepass"), timeout=seconds)
            status: int | None = child.returncode
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(child)
        output.seek(0)
        return Ran(status, output.read(LONGEST_OUTPUT).decode(errors="replace"))


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the process and its children, which share its session."""
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
    for limit, most in (
        (resource.RLIMIT_CPU, int(seconds) + 1),
        (resource.RLIMIT_AS, megabytes << 20),
        (resource.RLIMIT_FSIZE, 1 << 24),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))
except ImportError:
    pass
sys.argv = ["answer.py"]
exec(compile(source, "answer.py", "exec"), {"__name__": "__main__"})
"""
