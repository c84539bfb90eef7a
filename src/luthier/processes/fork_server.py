"""`python -m luthier.processes.fork_server`: imports what runs need, then forks a worker per folder.

To import takes longer than a small training. A line in is a run's folder, as JSON; lines out are `began` with the
number of its process and, when it has ended, `ended` with its exit code.
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
    os.dup2(2, 1)  # what libraries print is no answer
    with suppress(Exception):  # a worker meets the same error, and has a log to say it in
        _import()
    gc.freeze()  # what is shared is not looked through again by every worker
    for line in sys.stdin:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of idle threads of OpenBLAS
            process = os.fork()
        if process == 0:
            return _worker(Path(json.loads(line)), answers)
        _, status = os.waitpid(process, 0)
        with suppress(BrokenPipeError):  # a comparison that was killed does not ask
            os.write(answers, f"ended {os.waitstatus_to_exitcode(status)}\n".encode())
    return 0


def _import() -> None:
    """What nearly every run imports. None of it may train or look for a GPU: threads and drivers outlive no fork."""
    import peft  # noqa: F401
    import transformers.modeling_utils
    import transformers.models.auto.modeling_auto
    import transformers.models.auto.tokenization_auto  # noqa: F401

    import luthier.processes.worker  # noqa: F401


def _worker(folder: Path, answers: int) -> int:
    """Be the worker of a folder: a session of its own, no input, and its log for all that is said."""
    os.setsid()
    os.write(answers, f"began {os.getpid()}\n".encode())
    os.close(answers)
    for path, flags, places in (
        (os.devnull, os.O_RDONLY, (0,)),
        (folder / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, (1, 2)),
    ):
        opened = os.open(path, flags, 0o666)
        for place in places:
            os.dup2(opened, place)
        os.close(opened)
    from luthier.processes import worker

    sys.argv = ["worker", str(folder)]
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
