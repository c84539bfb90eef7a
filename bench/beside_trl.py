"""Luthier beside TRL: speed, memory, start-up and loss of full fine-tuning by sft, dft, dpo and asft on one CPU.

    .venv/bin/python bench/beside_trl.py --data GSM8K/train.jsonl
    .venv/bin/python bench/beside_trl.py --data ... --models nano --objectives dpo --rounds 1

TRL's environment makes itself (build/trl-venv, the same torch, transformers and peft). Both sides run in turns, each
run in a process of its own; results/beside_trl.json has every run, the table medians and the ratios of medians.

Fixed for all: the model's folder, rows of GSM8K's training set through the chat template, token for token in the same
order, loss on completions only, records per batch, one epoch, float32 weights, AdamW at a constant rate, clipping
at 1. A pair of dpo is a question with its own answer and the answer of another question, of the next length. Both
sides read dpo's reference once before training (TRL: `precompute_ref_log_probs`); that is part of their start-up.
asft is not in TRL: its cell stands beside TRL's sft, with its reference's share in the time of its training, and
losses are not compared. Everything else is each side's own
default. The arms:

    luthier          computes in whatever it finds to be fast on this processor
    luthier-bf16     computes in bfloat16
    trl              its defaults: bfloat16 autocast, gradient checkpointing
    trl-fast         bfloat16, no gradient checkpointing
    trl-fp32         float32, gradient checkpointing
    trl-fp32-fast    float32, no gradient checkpointing

By default the bfloat16 arms of TRL run where the processor has instructions for it, else the float32 ones: torch
emulates it about eight times slower than float32.

Tokens per second count every token that is not padding (a prompt for each of its answers), over the time from the
first update's start to the last update's end; start-up is from the start of the process to there. Processor seconds
are those of all threads in that time, and mislead less on a busy machine. Peak memory is ru_maxrss of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import result

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build"
TRL = "trl==1.16.0"
ARMS = {
    "luthier": {"precision": "auto"},
    "luthier-bf16": {"precision": "bfloat16"},
    "trl": {"precision": "bfloat16", "checkpointing": True},
    "trl-fast": {"precision": "bfloat16", "checkpointing": False},
    "trl-fp32": {"precision": "float32", "checkpointing": True},
    "trl-fp32-fast": {"precision": "float32", "checkpointing": False},
}
THEIRS = {"sft": "sft", "dft": "dft", "dpo": "dpo", "asft": "sft"}
"""What TRL trains beside each of our objectives."""
MODELS: dict[str, dict[str, Any]] = {
    # nano reads bytes, 512 of them
    "nano": {"records": 256, "batch": 16, "max_tokens": 512, "most_bytes": 400, "learning_rate": 1e-4},
    "smollm2-135m-instruct": {
        "records": 48,
        "batch": 8,
        "max_tokens": 1024,
        "most_bytes": 4000,
        "learning_rate": 2e-5,
    },
}
MEASURES = (
    "tokens_per_second",
    "peak_memory_bytes",
    "startup_seconds",
    "train_seconds",
    "processor_seconds",
)


def main() -> None:
    options = read_options()
    data = options.data.resolve()
    if not data.is_file():
        sys.exit(f"There is no file {data}. Name GSM8K's train.jsonl: bench/beside_trl.py --data PATH")
    cells: dict[str, dict[str, Any]] = {}
    for model in options.models:
        for objective in options.objectives:
            cells.setdefault(model, {})[objective] = cell(model, objective, options, data)
            result.write("beside_trl", {"trl": TRL, "cells": cells}, options.output)
    print(table(cells))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="GSM8K's train.jsonl")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--objectives", nargs="+", choices=THEIRS, default=list(THEIRS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=default_arms())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, help="default: 256 for nano, 48 for SmolLM2; pairs count once")
    parser.add_argument("--output", type=Path)
    return parser.parse_args()


def default_arms() -> list[str]:
    """Ours, and TRL's two in the type that this processor computes fast."""
    fast = {"avx512_bf16", "amx_bf16"} & set(result.hardware()["instructions"])
    return ["luthier", "trl", "trl-fast"] if fast else ["luthier", "trl-fp32", "trl-fp32-fast"]


def cell(model: str, objective: str, options: argparse.Namespace, data: Path) -> dict[str, Any]:
    """One model and objective: all arms in turns."""
    folder = BUILD / "beside-trl"
    folder.mkdir(parents=True, exist_ok=True)
    settings = MODELS[model] | ({"records": options.records} if options.records else {})
    task = make_task(model, objective, settings, data, folder)
    ours = Path(sys.executable)
    theirs = trl_environment() if any(is_trl(arm) for arm in options.arms) else ours
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}
    for number in range(options.rounds):
        turn = number % len(options.arms)
        for arm in (*options.arms[turn:], *options.arms[:turn]):
            print(f"{model}, {objective}, round {number + 1} of {options.rounds}: {arm} ...", flush=True)
            runs[arm].append(measured(arm, theirs if is_trl(arm) else ours, task, folder))
            print("  " + sentence(runs[arm][-1]), flush=True)
    return {"task": public(task), "arms": summary(runs, same_loss=THEIRS[objective] == objective), "runs": runs}


def is_trl(arm: str) -> bool:
    return arm.startswith("trl")


def make_task(model: str, objective: str, settings: dict[str, Any], data: Path, folder: Path) -> dict[str, Any]:
    """What both sides are told.

    TRL's rows stand in the order in which Luthier's keyed shuffle draws them, with the chat template already applied to
    the prompts: TRL would also train on the line break after the end of the turn, and tokens and losses would differ.
    """
    rows = read_rows(data, settings["records"], settings["most_bytes"])
    if objective == "dpo":
        rows = with_rejected(rows)
        settings = settings | {"batch": max(1, settings["batch"] // 2)}
    answers = ["chosen", "rejected"] if objective == "dpo" else ["completion"]
    source, ordered = folder / "rows.jsonl", folder / "rows-in-order.jsonl"
    asked = {"prompt": lambda text: chat("user", text)} | dict.fromkeys(answers, lambda text: chat("assistant", text))
    write_rows(source, [{name: form(row[name]) for name, form in asked.items()} for row in rows])
    task = {
        **settings,
        "model": model,
        "objective": objective,
        "theirs": THEIRS[objective],
        "data": str(source),
        "ordered_data": str(ordered),
        "betas": [0.9, 0.999],
        "clip": 1.0,
        "seed": 0,
        "folder": str(folder / "out"),
    }
    told = json.loads(side("luthier_side.py", Path(sys.executable), {**task, "do": "order"}, folder).stdout)
    drawn = [rows[index] for index in told["order"]]
    write_rows(
        ordered,
        [{"prompt": p} | {a: row[a] for a in answers} for p, row in zip(told["prompts"], drawn, strict=True)],
    )
    return {**task, "model_folder": told["model"]}


def read_rows(data: Path, count: int, most_bytes: int) -> list[dict[str, str]]:
    """The first records that are not too long for the model."""
    found: list[dict[str, str]] = []
    with data.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if len((row["question"] + row["answer"]).encode()) <= most_bytes:
                found.append({"prompt": row["question"], "completion": row["answer"]})
            if len(found) == count:
                return found
    sys.exit(f"{data} has only {len(found)} records of at most {most_bytes} bytes.")


def with_rejected(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Pairs: each answer, and that of the record next in length (of the last one, the one before)."""
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]["completion"]))
    other = dict(zip(by_length, [*by_length[1:], by_length[-2]], strict=True))
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": rows[other[index]]["completion"]}
        for index, row in enumerate(rows)
    ]


def chat(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def trl_environment() -> Path:
    """The interpreter of TRL's environment, made on first use with the pins of constraints.txt."""
    home = BUILD / "trl-venv"
    python = home / "bin" / "python"
    stamp = home / TRL
    if not stamp.exists():
        print(f"making {home.relative_to(ROOT)} (about a minute, once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, TRL, "torch", "transformers", "peft"], check=True)
        stamp.touch()
    return python


def side(script: str, python: Path, task: dict[str, Any], folder: Path) -> subprocess.CompletedProcess[str]:
    path = folder / "task.json"
    path.write_text(json.dumps(task), encoding="utf-8")
    done = subprocess.run([str(python), str(HERE / script), str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{script} failed:\n{done.stderr[-4000:]}")
    return done


def measured(arm: str, python: Path, task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one side in its own process, watching its memory from outside."""
    name = "trl_side.py" if is_trl(arm) else "luthier_side.py"
    found_at, path, log = folder / "result.json", folder / "task.json", folder / f"{arm}.log"
    found_at.unlink(missing_ok=True)
    shutil.rmtree(task["folder"], ignore_errors=True)
    told = {**task, **ARMS[arm], "do": "train", "result": str(found_at)}
    path.write_text(json.dumps(told), encoding="utf-8")
    # a cache of their own, made anew: neither side finds rows or references of an earlier round
    environment = {**os.environ, "HF_DATASETS_CACHE": str(Path(task["folder"]) / "datasets")}
    started = time.time()
    with log.open("w") as out:
        command = [str(python), str(HERE / name), str(path)]
        child = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        samples: list[Sample] = []
        watcher = threading.Thread(target=watch, args=(child.pid, samples), daemon=True)
        watcher.start()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode or not found_at.exists():
        sys.exit(f"{arm} failed with exit code {child.returncode}, see {log}:\n{log.read_text()[-4000:]}")
    found = json.loads(found_at.read_text())
    times = found.pop("update_times")
    began = found.pop("began")
    seconds = times[-1] - began
    training = [sample for sample in samples if began <= sample.when <= times[-1]]
    return {
        **found,
        "updates": len(times),
        "train_seconds": round(seconds, 2),
        "tokens_per_second": round(found["tokens"] / seconds, 2),
        "startup_seconds": round(began - started, 2),
        "peak_memory_bytes": usage.ru_maxrss * 1024,
        "processor_seconds": round(training[-1].processor - training[0].processor, 2) if training else 0.0,
        "losses": [round(loss, 5) for loss in found["losses"]],
    }


@dataclass(frozen=True)
class Sample:
    """What a process has used at one moment: seconds of all its threads."""

    when: float
    processor: float


def watch(pid: int, samples: list[Sample]) -> None:
    """Sample a process until it is gone."""
    tick = os.sysconf("SC_CLK_TCK")
    while True:
        try:
            used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, IndexError):
            return
        samples.append(Sample(time.time(), (int(used[11]) + int(used[12])) / tick))
        time.sleep(0.02)


def summary(runs: dict[str, list[dict[str, Any]]], same_loss: bool) -> dict[str, dict[str, Any]]:
    """Medians of each arm, and for Luthier the ratios to each arm of TRL."""
    arms: dict[str, dict[str, Any]] = {}
    for arm, found in runs.items():
        arms[arm] = {key: statistics.median(run[key] for run in found) for key in MEASURES}
        arms[arm] |= {key: found[0][key] for key in ("tokens", "target_tokens", "updates")}
        arms[arm]["losses"] = [statistics.median(step) for step in zip(*(run["losses"] for run in found), strict=True)]
    for arm in filter(is_trl, arms):
        if "luthier" not in arms:
            continue
        ours, theirs = arms["luthier"], arms[arm]
        against = {key: round(ours[key] / theirs[key], 3) for key in MEASURES if theirs[key]}
        if same_loss:
            gaps = [abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)]
            against["largest_loss_difference"] = round(max(gaps), 5)
        arms[arm]["luthier_against_it"] = against
    return arms


def sentence(run: dict[str, Any]) -> str:
    return (
        f"{run['tokens_per_second']:.1f} tokens/s, peak {run['peak_memory_bytes'] / 2**30:.2f} GiB,"
        f" start-up {run['startup_seconds']:.1f} s, training {run['train_seconds']:.1f} s"
        f" ({run['processor_seconds']:.1f} of processor),"
        f" loss {run['losses'][0]:.4f} to {run['losses'][-1]:.4f}"
    )


def table(cells: dict[str, dict[str, Any]]) -> str:
    """A line for each arm of each cell; ratios are ours to theirs."""
    titles = ("model", "objective", "arm", "tokens/s", "peak GiB", "start-up s", "loss first", "last")
    lines = [form_line(titles) + "   ours: speed, memory, start-up, loss apart"]
    for model, objectives in cells.items():
        for objective, found in objectives.items():
            lines += [arm_line(model, objective, arm, one) for arm, one in found["arms"].items()]
    return "\n".join(lines)


def arm_line(model: str, objective: str, arm: str, found: dict[str, Any]) -> str:
    beside = f"{arm} ({THEIRS[objective]})" if is_trl(arm) and THEIRS[objective] != objective else arm
    numbers = (
        f"{found['tokens_per_second']:.1f}",
        f"{found['peak_memory_bytes'] / 2**30:.2f}",
        f"{found['startup_seconds']:.1f}",
        f"{found['losses'][0]:.4f}",
        f"{found['losses'][-1]:.4f}",
    )
    line = form_line((model, objective, beside, *numbers))
    against = found.get("luthier_against_it")
    if against is None:
        return line
    ratios = "   ".join(f"{against[key]:.2f}x" for key in ("tokens_per_second", "peak_memory_bytes", "startup_seconds"))
    gap = against.get("largest_loss_difference")
    return f"{line}   {ratios}" + ("" if gap is None else f"   {gap:.5f}")


def form_line(words: tuple[str, ...]) -> str:
    model, objective, arm, *numbers = words
    return f"{model[:13]:13} {objective:10} {arm:20}" + "".join(f"{number:>11}" for number in numbers)


def public(task: dict[str, Any]) -> dict[str, Any]:
    """The task without this machine's folders."""
    return {key: v for key, v in task.items() if key not in ("data", "ordered_data", "folder", "model_folder")}


if __name__ == "__main__":
    main()
