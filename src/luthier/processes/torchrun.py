"""One run by several processes on this machine: each computes its share of every update."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from luthier.errors import RunError
from luthier.processes.environment import child_environment
from luthier.recipe import Recipe
from luthier.run_folder import read_json, write_json
from luthier.runs.run import SETS
from luthier.runs.stop import Ended, stop_signals
from luthier.steps.run import finished

POLL_SECONDS = 0.2


def run_on_ranks(recipe: Recipe, folder: Path, processes: int) -> dict[str, Any]:
    """Train with `processes` ranks under torchrun; rank 0 evaluates and writes run.json, which is returned.

    Raises:
        RunError: a rank failed, or the folder holds a finished run of another recipe.
    """
    if (record := finished(recipe, folder)) is not None:
        return record
    # The record of an earlier try would be read as the record of this one if the launcher failed at once.
    (folder / "run.json").unlink(missing_ok=True)
    task = {"do": "train", "method": "run", "seed": recipe.settings.seed, "sets": SETS, "shared": f"{folder}/shared"}
    write_json(folder / "task.json", {**task, "recipe": recipe.to_lock()})
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    code = _launch([sys.executable, *launcher, "-m", "luthier.processes.worker", str(folder)], folder / "log.txt")
    record = read_json(folder / "run.json") if (folder / "run.json").is_file() else {"status": "failed", "error": None}
    if record["status"] == "failed" or (code and record["status"] == "done"):
        raise RunError(
            record["error"] or f"A rank ended with exit code {code}.", f"The ranks' log: {folder / 'log.txt'}"
        )
    return record


def _launch(command: list[str], log: Path) -> int:
    """Run the launcher to its end; returns its exit code."""
    with log.open("ab") as output, stop_signals() as stop:
        # In a session of its own the launcher gets no Ctrl-C from the terminal: it is asked once, and its ranks save.
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=child_environment(), start_new_session=True
        )
        passed_on = False
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)
                if stop.asked and not passed_on:
                    process.terminate()
                    passed_on = True
        except Ended:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise KeyboardInterrupt from None
    return process.returncode
