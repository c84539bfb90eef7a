"""One run by several processes on this machine: each takes its share of every update."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from luthier.errors import RunError
from luthier.recipe import Recipe
from luthier.records import read_json, write_json
from luthier.steps.train import SETS


def run_on_ranks(recipe: Recipe, folder: Path, processes: int) -> dict[str, Any]:
    """Train with `processes` ranks under torchrun; rank 0 evaluates and writes run.json, which is returned.

    Raises:
        RunError: a rank failed.
    """
    task = {"do": "train", "method": "run", "seed": recipe.settings.seed, "sets": SETS, "shared": f"{folder}/shared"}
    write_json(folder / "task.json", {**task, "recipe": recipe.to_lock()})
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with (folder / "log.txt").open("ab") as log:
        command = [sys.executable, *launcher, "-m", "luthier.steps.worker", str(folder)]
        code = subprocess.run(command, stdout=log, stderr=log).returncode
    record = read_json(folder / "run.json") if (folder / "run.json").is_file() else {"status": "failed", "error": None}
    if record["status"] == "failed" or (code and record["status"] == "done"):
        raise RunError(
            record["error"] or f"A rank ended with exit code {code}.", f"The ranks' log: {folder / 'log.txt'}"
        )
    return record
