"""Starts the process of a run: forked by a server that has imported all libraries, or from a command of its own."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from luthier.processes.environment import child_environment

WORKER = (sys.executable, "-m", "luthier.processes.worker")
FORK_SERVER = (sys.executable, "-m", "luthier.processes.fork_server")
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class Process(Protocol):
    """The process of one run. It leads a session of its own, so Ctrl-C reaches only the comparison."""

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, negative for a signal; None if the process has not ended within `timeout` seconds."""
        ...

    def terminate(self) -> None:
        """Ask the run to save its state and end."""
        ...

    def kill(self) -> None:
        """Kill the process and its children."""
        ...


class Workers:
    """Starts the processes of runs.

    Args:
        command: a worker, which gets a run's folder as its last argument. None: Luthier's own worker, forked from a
            process that has imported the libraries of runs if that is safe (`can_fork`).
    """

    def __init__(self, command: Sequence[str] | None = None):
        self._command = command or (None if can_fork() else WORKER)
        self._forks: ForkServer | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._forks is not None:
            self._forks.close()

    def start(self, folder: Path) -> Process:
        """Start the run of a folder; its output is appended to the folder's log.txt."""
        if self._command is not None:
            return SpawnedProcess([*self._command, str(folder)], folder / "log.txt")
        if self._forks is None or self._forks.ended:
            self._forks = ForkServer(folder / "log.txt")
        return ForkedProcess(self._forks, folder)


def can_fork() -> bool:
    """Whether workers may be forked: on Linux without a GPU, whose driver must not be loaded before a fork."""
    return sys.platform == "linux" and not any(Path(device).exists() for device in GPUS)


class SpawnedProcess:
    """A process started from a command."""

    def __init__(self, command: Sequence[str], log: Path):
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=child_environment(),
                start_new_session=True,
            )

    def wait(self, timeout: float | None = None) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(timeout)
        return None

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)


class ForkServer:
    """The process that forks workers, one at a time.

    Args:
        log: gets the server's own errors and the output of its imports.
    """

    def __init__(self, log: Path):
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                FORK_SERVER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=child_environment(),
                bufsize=0,  # a buffered line would be invisible to the `select` of `reply`
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, folder: Path) -> None:
        """Fork a worker for this folder."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the server has ended; `reply` reports that
            self._process.stdin.write(json.dumps(str(folder.absolute())).encode() + b"\n")

    def reply(self, timeout: float | None) -> tuple[str, int] | None:
        """The server's next line, ("began", process) or ("ended", exit code); None after `timeout` seconds without one.

        Raises:
            EOFError: the server has ended.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return None
        words = self._process.stdout.readline().split()
        if len(words) != 2:
            raise EOFError
        return words[0].decode(), int(words[1])

    def close(self) -> int:
        """Kill the server; returns its exit code."""
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return code


class ForkedProcess:
    """A worker that the fork server starts as soon as its imports are done."""

    def __init__(self, forks: ForkServer, folder: Path):
        self._forks = forks
        self._code: int | None = None
        self._process: int | None = None
        forks.ask(folder)

    def wait(self, timeout: float | None = None) -> int | None:
        while self._code is None:
            try:
                reply = self._forks.reply(timeout)
            except EOFError:
                self.kill()
                break
            match reply:
                case None:
                    break
                case "began", number:
                    self._process = number
                case _, code:
                    self._code = code
        return self._code

    def terminate(self) -> None:
        if self._process is None:
            self.kill()  # the worker has not begun, so there is nothing to save
        elif self._code is None:
            os.kill(self._process, signal.SIGTERM)

    def kill(self) -> None:
        if self._process is not None and self._code is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process, signal.SIGKILL)
        # The server waits for this worker, or may still be about to fork it. `Workers` starts another server.
        self._code = self._forks.close()
