"""A whole GRPO update beside TRL's GRPOTrainer: sampling, reward, advantages, loss, optimiser; updates take turns.

    .venv/bin/python bench/grpo.py              # about three minutes; writes results/grpo.json

TRL's environment is the one of beside_trl.py (build/trl-venv, made on first use). Both sides live in a process of
their own and carry out one update when told, ours, theirs, ours ... Fixed for both: `nano` in float32, the same 8
prompts in every update, 8 answers each at temperature 1, the most new tokens, the reward (letters.py), one update per
rollout, full fine-tuning by AdamW at a constant 1e-6, clipping at 1, the loss averaged over tokens, one thread.
Everything else is each side's own default, but TRL's gradient checkpointing is off: that is faster here.
The ratio is that of the medians, after the updates that warm up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import result
from beside_trl import BUILD, HERE, TRL, trl_environment

from luthier import parts
from luthier.data.render import Renderer
from luthier.models.loading.load import resolve_model


class Side:
    """One process, its log, and what it has measured."""

    def __init__(self, python: Path, script: str, task: dict[str, Any], folder: Path):
        self.path, self.log = folder / "task.json", folder / f"{script}.log"
        self.path.write_text(json.dumps(task), encoding="utf-8")
        self.updates: list[dict[str, float]] = []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            command = [str(python), str(HERE / script), str(self.path)]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environment)

    def update(self) -> None:
        """One update, from its first draw to its last step."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            sys.exit(f"{self.log.name} ended early:\n{self.log.read_text()[-4000:]}")
        self.updates.append(json.loads(line))

    def close(self) -> None:
        """No more updates."""
        self.process.kill()
        self.process.communicate()


def make_task(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What both sides are told; TRL gets the prompts with the chat template applied."""
    from transformers import AutoTokenizer

    data = {"kind": "strings", "count": options.prompts, "longest": 16}
    model = resolve_model("nano", HERE)
    renderer = Renderer(AutoTokenizer.from_pretrained(model), "chat", "auto")
    return {
        "model": "nano",
        "model_folder": str(model),
        "data": data,
        "texts": [renderer.prompt_text(record) for record in parts.build("dataset", data).records()],
        "prompts": options.prompts,
        "group": options.group,
        "new": options.new,
        "updates": options.warm + options.updates + 1,
        "learning_rate": 1e-6,
        "folder": str(folder / "out"),
    }


def summary(sides: dict[str, Side], warm: int) -> dict[str, Any]:
    """Medians of both and their ratios: how many of our updates fit in one of theirs."""
    found: dict[str, Any] = {"medians": {}, "updates": {}}
    for name, side in sides.items():
        kept = side.updates[warm:]
        found["medians"][name] = {key: statistics.median(one[key] for one in kept) for key in kept[0]}
        found["updates"][name] = kept
    ours, theirs = found["medians"]["luthier"], found["medians"]["trl"]
    found["ratio"] = theirs["seconds"] / ours["seconds"]
    found["ratio_of_processor_seconds"] = theirs["processor_seconds"] / ours["processor_seconds"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="A whole GRPO update beside TRL's.")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new", type=int, default=96)
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    folder = BUILD / "grpo-bench"
    folder.mkdir(parents=True, exist_ok=True)
    task = make_task(options, folder)
    sides = {
        "luthier": Side(Path(sys.executable), "grpo_luthier.py", task, folder),
        "trl": Side(trl_environment(), "grpo_trl.py", task, folder),
    }
    try:
        for _ in range(options.warm + options.updates):
            for side in sides.values():
                side.update()
    finally:
        for side in sides.values():
            side.close()
    found = {
        "setting": {key: value for key, value in task.items() if key not in ("model_folder", "folder", "texts")},
        "warm": options.warm,
        **summary(sides, options.warm),
        "trl": TRL,
    }
    result.write("grpo", found, options.output)
    for name, one in found["medians"].items():
        print(name, {key: round(value, 3) for key, value in one.items()})
    print(f"ratio {found['ratio']:.2f}, of processor seconds {found['ratio_of_processor_seconds']:.2f}")


if __name__ == "__main__":
    main()
