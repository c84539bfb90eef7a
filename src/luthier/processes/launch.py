"""Where the process of a run comes from: forked by one that has imported everything, or a command of its own."""

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

WORKER = (sys.executable, "-m", "luthier.processes.worker")
FORK_SERVER = (sys.executable, "-m", "luthier.processes.fork_server")
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class Process(Protocol):
    """The process of one run. It leads a session of its own: Ctrl-C reaches only us."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code, negative for a signal; None if it has not ended within `timeout` seconds."""
        ...

    def terminate(self) -> None:
        """Ask it to save and end."""
        ...

    def kill(self) -> None:
        """End it and all that it started."""
        ...


class Workers:
    """Starts the processes of runs.

    Args:
        command: a worker; it gets a run's folder as its last argument. None: Luthier's own, forked from one process
            that has imported what runs need, where that is safe (`can_fork`).
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
        """Start the run of a folder; what it says is added to the folder's log.txt."""
        if self._command is not None:
            return SpawnedProcess([*self._command, str(folder)], folder / "log.txt")
        if self._forks is None or self._forks.ended:
            self._forks = ForkServer(folder / "log.txt")
        return ForkedProcess(self._forks, folder)


def can_fork() -> bool:
    """Whether workers may be forked: on Linux, and with no GPU, whose driver must not be touched before a fork."""
    return sys.platform == "linux" and not any(Path(device).exists() for device in GPUS)


class SpawnedProcess:
    """A process started from a command."""

    def __init__(self, command: Sequence[str], log: Path):
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                command, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True
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
    """The process that forks workers, one at a time; what it says before it forks the first goes to `log`."""

    def __init__(self, log: Path):
        with log.open("ab") as said:
            self._process = subprocess.Popen(
                FORK_SERVER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                bufsize=0,
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, folder: Path) -> None:
        """Fork a worker for this folder."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, and `said` will tell
            self._process.stdin.write(json.dumps(str(folder.absolute())).encode() + b"\n")

    def said(self, timeout: float | None) -> tuple[str, int] | None:
        """The next it says, ("began", process) or ("ended", exit code); None if it is silent for `timeout` seconds.

        Raises:
            EOFError: it has ended itself.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return None
        words = self._process.stdout.readline().split()
        if len(words) != 2:
            raise EOFError
        return words[0].decode(), int(words[1])

    def close(self) -> int:
        """End it at once; its exit code."""
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        return code


class ForkedProcess:
    """A worker that `Forks` forks as soon as it has imported what workers need."""

    def __init__(self, forks: ForkServer, folder: Path):
        self._forks = forks
        self._code: int | None = None
        self._process: int | None = None
        forks.ask(folder)

    def wait(self, timeout: float | None = None) -> int | None:
        while self._code is None:
            try:
                found = self._forks.said(timeout)
            except EOFError:
                self.kill()
                break
            match found:
                case None:
                    break
                case "began", number:
                    self._process = number
                case _, code:
                    self._code = code
        return self._code

    def terminate(self) -> None:
        if self._process is None:
            self.kill()  # nothing has begun that could be saved
        elif self._code is None:
            os.kill(self._process, signal.SIGTERM)

    def kill(self) -> None:
        if self._process is not None and self._code is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process, signal.SIGKILL)
        self._code = self._forks.close()
