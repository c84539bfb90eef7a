"""`python -m luthier.processes.fork_server`: imports the libraries of runs, then forks a worker for each folder.

The imports take longer than a small training. Each line of the input is a run's folder, as JSON. The output has two
lines for each: `began` with the number of the worker's process, then `ended` with its exit code.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path


def main() -> int:
    """Serve until the input ends. In a forked process: the exit code of its worker."""
    answers = os.dup(1)
    os.dup2(2, 1)  # prints of libraries must not mix with the lines of the protocol
    with suppress(Exception):  # a worker meets the same error, and has a log to report it in
        _import()
    gc.freeze()  # workers need not collect, and so copy, what they share
    for line in sys.stdin:
        # Python warns of a fork beside other threads: here these are idle threads of OpenBLAS.
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            process = os.fork()
        if process == 0:
            return _worker(Path(json.loads(line)), answers)
        _, status = os.waitpid(process, 0)
        with suppress(BrokenPipeError):  # a comparison that was killed reads no answer
            os.write(answers, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())
    return 0


def _import() -> None:
    """Import what nearly every run imports, without training or touching a GPU: threads and drivers survive no fork."""
    import peft  # noqa: F401
    import transformers.modeling_utils
    import transformers.models.auto.modeling_auto
    import transformers.models.auto.tokenization_auto  # noqa: F401

    import luthier.processes.worker  # noqa: F401


def _worker(folder: Path, answers: int) -> int:
    """Become the worker of a folder: in a session of its own, without input, with its log as output and error."""
    os.setsid()
    os.write(answers, f"began {os.getpid()}\n".encode())
    os.close(answers)
    for path, flags, descriptors in (
        (os.devnull, os.O_RDONLY, (0,)),
        (folder / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, (1, 2)),
    ):
        opened = os.open(path, flags, 0o666)
        for descriptor in descriptors:
            os.dup2(opened, descriptor)
        os.close(opened)
    from luthier.processes import worker

    sys.argv = ["worker", str(folder)]
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
