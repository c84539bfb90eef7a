"""Is this checkout as fast and as lean as another one? `python bench/before_after.py OTHER_CHECKOUT [--rounds 8]`

Both train the same recipes (nano, made-up words) by `luthier run`, in turns: before, after, after, before, ...
For each method: the ratio after / before of the seconds of an update (the first one of each run is not counted) and of
the peak memory, as the geometric mean over the rounds with its 95% interval (t over the logarithms of the rounds'
ratios). Writes results/before_after.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import result

from luthier.stats import student_quantile

HERE = Path(__file__).resolve().parents[1]
METHODS = ("sft", "dft", "asft", "grpo")
RECIPE = {
    "model": "nano",
    "data": {"train": "words.jsonl", "validation": None, "test": None, "max_tokens": 64},
    "train": {"batch": {"records": 32}, "save": {"every": None}},
    "generate": {"max_new_tokens": 16},
    "reward": "exact",
}


def train(checkout: Path, folder: Path, method: str, tuner: str, updates: int) -> dict[str, float]:
    """Seconds of an update without the first, and peak bytes, of one run by the code of a checkout."""
    recipe = {**RECIPE, "budget": {"updates": updates}}
    recipe["train"] = {**RECIPE["train"], "tuner": tuner}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "luthier", "run", "recipe.yaml", "--method", method, "observe=[]"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{checkout}: {method}: {done.stderr}")
    newest = max((folder / "runs" / "recipe").iterdir(), key=lambda path: int(path.name))
    lines = [json.loads(line) for line in (newest / "metrics.jsonl").read_text().splitlines()]
    seconds = [line["seconds"] for line in lines if "loss" in line]
    record = json.loads((newest / "run.json").read_text())
    return {
        "seconds": (seconds[-1] - seconds[0]) / (len(seconds) - 1),
        "peak_bytes": record["train"]["peak_memory_bytes"],
    }


def summary(before: list[float], after: list[float]) -> dict[str, float]:
    """The ratio after / before and its 95% interval over paired rounds."""
    logs = [math.log(new / old) for old, new in zip(before, after, strict=True)]
    half = student_quantile(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    mean = statistics.fmean(logs)
    return {"ratio": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half)}


def main() -> None:
    """Run all methods in turns and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of the other commit")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--tuner", default="lora")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--updates", type=int, default=30)
    asked = parser.parse_args()
    lines: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, draw = Path(name), random.Random(0)
        words = ["".join(draw.choices("abcdefgh", k=draw.randint(3, 12))) for _ in range(400)]
        rows = [{"prompt": f"reverse {word}", "completion": word[::-1]} for word in words]
        (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for method in asked.methods:
            arms: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
            for number in range(asked.rounds):
                order = ("before", "after") if number % 2 == 0 else ("after", "before")
                for arm in order:
                    checkout = asked.before.resolve() if arm == "before" else HERE
                    arms[arm].append(train(checkout, folder, method, asked.tuner, asked.updates))
            lines[method] = {
                key: summary([run[key] for run in arms["before"]], [run[key] for run in arms["after"]])
                for key in ("seconds", "peak_bytes")
            }
            for key, line in lines[method].items():
                print(f"{method:5} {key:10} {line['ratio']:.3f} [{line['low']:.3f}, {line['high']:.3f}]", flush=True)
    setup = {"tuner": asked.tuner, "rounds": asked.rounds, "updates": asked.updates}
    result.write("before_after", {"ratios": lines, **setup})


if __name__ == "__main__":
    main()
