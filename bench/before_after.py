"""Is this checkout as fast and as lean as another one? `python bench/before_after.py OTHER_CHECKOUT [--rounds 3]`

Two processes train the same recipe by `luthier run`, one with the code of each checkout, and take turns: an update
there, an update here. So both meet the same moments of the machine. For each method: the ratio here / there of the
processor time of an update (the first FIRST of each process are not counted), as the geometric mean with its 95%
interval (t over the logarithms of the ratios of paired updates), and the ratio of the peaks of memory over the rounds.
An update of nano is mostly the package's own code; `--model smollm2-135m-instruct` is mostly products of matrices.
Writes results/before_after.json.
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

HERE = Path(__file__).resolve().parents[1]
METHODS = ("sft", "dft", "asft", "grpo")
FIRST = 3
CHILD = """
import sys
sys.path.insert(0, {bench!r})
from turns import Turns
turns = Turns()
from luthier.cli.app import main
from luthier.engine.trainer import Trainer
name = "_one_update" if hasattr(Trainer, "_one_update") else "_one"  # as it is called here, and was at 8607436
update = getattr(Trainer, name)
def in_turn(self):
    turns.wait()
    more = update(self)
    turns.tell(more=more)
    return more
setattr(Trainer, name, in_turn)
sys.argv = ["luthier", "run", "recipe.yaml", "--method", {method!r}, "observe=[]", "out={out}"]
main()
"""


class Side:
    """The training of one checkout, update by update."""

    def __init__(self, checkout: Path, folder: Path, method: str, out: str):
        self.folder, self.out = folder, out
        text = CHILD.format(bench=str(HERE / "bench"), method=method, out=out)
        environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
        self.log = (folder / f"{out}.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-c", text],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def update(self) -> dict[str, Any]:
        """One update: its processor seconds, and whether there was one."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit((self.folder / f"{self.out}.log").read_text()[-3000:])
        return json.loads(line)

    def peak(self) -> float:
        """Peak bytes of the training, once it has ended."""
        self.process.communicate()
        newest = max((self.folder / self.out / "recipe").iterdir(), key=lambda path: int(path.name))
        return json.loads((newest / "run.json").read_text())["train"]["peak_memory_bytes"]


def in_turns(before: Path, recipe: dict[str, Any], method: str) -> tuple[list[float], float]:
    """Logarithms of the ratios here / there of paired updates, and of the peaks of memory."""
    with tempfile.TemporaryDirectory() as name:
        folder, draw = Path(name), random.Random(0)
        words = ["".join(draw.choices("abcdefgh", k=draw.randint(3, 12))) for _ in range(400)]
        rows = [{"prompt": f"reverse {word}", "completion": word[::-1]} for word in words]
        (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        there, here = Side(before, folder, method, "there"), Side(HERE, folder, method, "here")
        logs: list[float] = []
        for index in range(recipe["budget"]["updates"] + 1):
            sides = (there, here) if index % 2 == 0 else (here, there)
            seconds = {side.out: side.update() for side in sides}
            if not seconds["here"]["more"]:  # the budget is spent
                break
            if index >= FIRST:
                ratio = seconds["here"]["processor_seconds"] / seconds["there"]["processor_seconds"]
                logs.append(math.log(ratio))
        return logs, math.log(here.peak() / there.peak())


def summary(logs: list[float]) -> dict[str, float]:
    """Geometric mean of ratios with its 95% interval."""
    from luthier.stats import student_quantile

    half = student_quantile(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    mean = statistics.fmean(logs)
    return {"ratio": math.exp(mean), "low": math.exp(mean - half), "high": math.exp(mean + half), "n": len(logs)}


def main() -> None:
    """Run all methods in turns and print two lines for each."""
    import result

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of the other commit")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--tuner", default="lora")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=40)
    asked = parser.parse_args()
    recipe = {
        "model": asked.model,
        "data": {"train": "words.jsonl", "validation": None, "test": None, "max_tokens": 64},
        "train": {"batch": {"records": 32}, "save": {"every": None}, "tuner": asked.tuner},
        "generate": {"max_new_tokens": 16},
        "reward": "exact",
        "budget": {"updates": asked.updates},
    }
    lines: dict[str, Any] = {}
    for method in asked.methods:
        times: list[float] = []
        peaks: list[float] = []
        for _ in range(asked.rounds):
            logs, peak = in_turns(asked.before.resolve(), recipe, method)
            times += logs
            peaks.append(peak)
        lines[method] = {"processor_seconds": summary(times), "peak_bytes": summary(peaks)}
        for key, line in lines[method].items():
            print(f"{method:5} {key:18} {line['ratio']:.3f} [{line['low']:.3f}, {line['high']:.3f}] n {line['n']}")
            sys.stdout.flush()
    setup = {"model": asked.model, "tuner": asked.tuner, "rounds": asked.rounds, "updates": asked.updates}
    result.write("before_after", {"ratios": lines, **setup})


if __name__ == "__main__":
    main()
