"""A training beside a second program on the same cores: how much longer it takes, by how threads wait.

    python bench/busy.py                       # SmolLM2, LoRA, about ten minutes; writes results/busy.json

Each pair trains the same updates twice, alone and beside one endless loop per core; pairs of all ways alternate. The
speed of the second over that of the first would be 0.5 for a fair share of the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import result

WAYS = {
    "luthier": {},
    "spinning": {"GOMP_SPINCOUNT": "infinity"},
    "default of OpenMP": {"GOMP_SPINCOUNT": "300000"},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "30000 turns": {"GOMP_SPINCOUNT": "30000"},
    "1000 turns": {"GOMP_SPINCOUNT": "1000"},
}
RECIPE = """
model: smollm2
data: {train: {kind: strings, count: 64}, validation: null, test: 4}
train: {tuner: lora, batch: {records: 8}}
budget: {updates: 2}
evaluate: {perplexity: false}
generate: {max_new_tokens: 1}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="pairs of each way")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="model to train")
    arguments = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {way: {"quiet": [], "busy": []} for way in WAYS}
    for pair in range(arguments.pairs):
        for way, variables in WAYS.items():
            seconds[way]["quiet"].append(train(arguments.model, variables))
            with_load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores())]
            try:
                seconds[way]["busy"].append(train(arguments.model, variables))
            finally:
                for program in with_load:
                    program.kill()
            print(pair, way, {name: f"{times[-1]:.1f} s" for name, times in seconds[way].items()}, flush=True)
    result.write("busy", {"seconds": seconds, "medians": medians(seconds)})


def medians(seconds: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """By way: both medians, the busy speed over the quiet one, and the quiet speed over that of OpenMP's default."""
    usual = statistics.median(seconds["default of OpenMP"]["quiet"])
    rows = {}
    for way, times in seconds.items():
        quiet, busy = statistics.median(times["quiet"]), statistics.median(times["busy"])
        rows[way] = {"quiet": quiet, "busy": busy, "busy_over_quiet": quiet / busy, "quiet_over_default": usual / quiet}
    return rows


def train(model: str, variables: dict[str, str]) -> float:
    """Seconds of the updates of one run in a process of its own."""
    waiting = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {name: text for name, text in os.environ.items() if name not in waiting} | variables
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "r.yaml"
        recipe.write_text(RECIPE.replace("smollm2", model))
        command = [sys.executable, "-m", "luthier", "run", str(recipe)]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        lines = (Path(folder) / "runs/r/1/metrics.jsonl").read_text().splitlines()
    return float(json.loads(lines[-1])["seconds"])


def cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
