"""Luthier against TRL's SFTTrainer, side by side: speed, memory and loss of full fine-tuning on one CPU.

`.venv/bin/python bench/trl_sft.py` makes TRL's environment by itself (build/trl-venv, the same torch, transformers
and peft), then runs both sides in turns, each run in a process of its own, and writes results/trl_sft.json.

Fixed for all: SmolLM2-135M-Instruct from the same folder, the first 96 rows of GSM8K's training set through
the chat template, token for token in the same order, loss on completions only, batches of 8 records, one epoch, float32
weights, AdamW at a constant 2e-5, clipping at 1. Everything else is each side's own default. The arms:

    luthier          computes in whatever it finds to be fast on this processor
    luthier-bf16     computes in bfloat16
    trl              its defaults: bfloat16 autocast, gradient checkpointing
    trl-fp32         float32, gradient checkpointing
    trl-fp32-fast    float32, no gradient checkpointing: its fastest where bfloat16 is emulated
    trl-fast         bfloat16, no gradient checkpointing: its fastest where bfloat16 is in hardware

Where the processor lacks bfloat16 (see `instructions` in the output), torch emulates it about eight times slower than
float32: there `trl` and `luthier-bf16` take a quarter of an hour per run, and only the float32 arms say anything.

Tokens per second count every token that is not padding, over the time from the first update's start to the last
update's end; processor seconds are those of all threads in that time, and mislead less when the machine is busy.
Peak memory is the operating system's own (ru_maxrss) for the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BUILD = ROOT / "build"
TRL = "trl==1.16.0"
ARMS = {
    "luthier": {"precision": "auto"},
    "luthier-bf16": {"precision": "bfloat16"},
    "trl": {"precision": "bfloat16", "checkpointing": True},
    "trl-fp32": {"precision": "float32", "checkpointing": True},
    "trl-fp32-fast": {"precision": "float32", "checkpointing": False},
    "trl-fast": {"precision": "bfloat16", "checkpointing": False},
}
DEFAULT_ARMS = ("luthier", "trl", "trl-fp32", "trl-fp32-fast")


def main() -> None:
    options = read_options()
    data = options.data.resolve()
    if not data.is_file():
        sys.exit(f"There is no file {data}. Name GSM8K's train.jsonl: bench/trl_sft.py --data PATH")
    folder = BUILD / "trl-bench"
    folder.mkdir(parents=True, exist_ok=True)
    task = make_task(options, data, folder)
    ours = Path(sys.executable)
    theirs = trl_environment() if any(is_trl(arm) for arm in options.arms) else ours
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms}
    for number in range(options.rounds):
        turn = number % len(options.arms)
        for arm in (*options.arms[turn:], *options.arms[:turn]):
            print(f"round {number + 1} of {options.rounds}: {arm} ...", flush=True)
            runs[arm].append(measured(arm, theirs if is_trl(arm) else ours, task, folder))
            print("  " + sentence(runs[arm][-1]), flush=True)
    report = {"task": public(task), "machine": machine(), "arms": summary(runs), "runs": runs}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report["arms"]))
    print(f"written: {options.output}")


def is_trl(arm: str) -> bool:
    return arm.startswith("trl")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/gsm8k/train.jsonl")
    parser.add_argument("--records", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(DEFAULT_ARMS))
    parser.add_argument("--model", help="a model folder; default: the bundled smollm2-135m-instruct")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "trl_sft.json")
    return parser.parse_args()


def make_task(options: argparse.Namespace, data: Path, folder: Path) -> dict[str, Any]:
    """What both sides are told.

    TRL's rows stand in the order in which Luthier's keyed shuffle draws them, with the chat template already applied to
    the prompts: TRL would also train on the line break after the end of the turn, and tokens and losses would differ.
    """
    with data.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(options.records), strict=False)]
    source, ordered = folder / "rows.jsonl", folder / "rows-in-order.jsonl"
    write_rows(source, [(chat("user", row["question"]), chat("assistant", row["answer"])) for row in rows])
    task = {
        "model": options.model or "smollm2-135m-instruct",
        "data": str(source),
        "ordered_data": str(ordered),
        "records": options.records,
        "batch": options.batch,
        "max_tokens": 1024,
        "learning_rate": 2e-5,
        "betas": [0.9, 0.999],
        "clip": 1.0,
        "seed": 0,
        "folder": str(folder / "out"),
    }
    asked = json.loads(side("luthier_side.py", Path(sys.executable), {**task, "do": "order"}, folder).stdout)
    answers = [rows[index]["answer"] for index in asked["order"]]
    write_rows(ordered, list(zip(asked["prompts"], answers, strict=True)))
    return {**task, "model": asked["model"]}


def chat(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def write_rows(path: Path, rows: list[tuple[Any, Any]]) -> None:
    lines = [json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in rows]
    path.write_text("".join(lines), encoding="utf-8")


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
    result, path, log = folder / "result.json", folder / "task.json", folder / f"{arm}.log"
    result.unlink(missing_ok=True)
    told = {**task, **ARMS[arm], "do": "train", "result": str(result)}
    path.write_text(json.dumps(told), encoding="utf-8")
    started = time.time()
    with log.open("w") as out:
        child = subprocess.Popen([str(python), str(HERE / name), str(path)], stdout=out, stderr=out)
        samples: list[Sample] = []
        watcher = threading.Thread(target=watch, args=(child.pid, samples), daemon=True)
        watcher.start()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode or not result.exists():
        sys.exit(f"{arm} failed with exit code {child.returncode}, see {log}:\n{log.read_text()[-4000:]}")
    found = json.loads(result.read_text())
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
        "peak_memory_training_bytes": max(sample.memory for sample in training),
        "processor_seconds": round(training[-1].processor - training[0].processor, 2),
        "losses": [round(loss, 5) for loss in found["losses"]],
    }


@dataclass(frozen=True)
class Sample:
    """What a process holds and has used at one moment: bytes, and seconds of all its threads."""

    when: float
    memory: int
    processor: float


def watch(pid: int, samples: list[Sample]) -> None:
    """Sample a process until it is gone."""
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    while True:
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, IndexError):
            return
        samples.append(Sample(time.time(), pages * page, (int(used[11]) + int(used[12])) / tick))
        time.sleep(0.02)


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Medians of each arm, and for Luthier the ratios to each arm of TRL."""
    memory, seconds = ("peak_memory_bytes", "peak_memory_training_bytes"), ("train_seconds", "processor_seconds")
    keys = ("tokens_per_second", *memory, "startup_seconds", *seconds)
    arms: dict[str, dict[str, Any]] = {}
    for arm, found in runs.items():
        arms[arm] = {key: statistics.median(run[key] for run in found) for key in keys}
        arms[arm] |= {key: found[0][key] for key in ("tokens", "target_tokens", "updates")}
        arms[arm]["losses"] = [statistics.median(step) for step in zip(*(run["losses"] for run in found), strict=True)]
    for arm in arms:
        if is_trl(arm) and "luthier" in arms:
            ours, theirs = arms["luthier"], arms[arm]
            pairs = list(zip(ours["losses"], theirs["losses"], strict=True))
            arms[arm]["luthier_against_it"] = {
                "speed": round(ours["tokens_per_second"] / theirs["tokens_per_second"], 3),
                "processor_time": round(ours["processor_seconds"] / theirs["processor_seconds"], 3),
                "memory": round(ours["peak_memory_bytes"] / theirs["peak_memory_bytes"], 3),
                "memory_training": round(ours["peak_memory_training_bytes"] / theirs["peak_memory_training_bytes"], 3),
                "startup": round(ours["startup_seconds"] / theirs["startup_seconds"], 3),
                "largest_loss_difference": round(max(abs(a - b) for a, b in pairs), 5),
                "mean_loss_difference": round(statistics.fmean(a - b for a, b in pairs), 5),
            }
    return arms


def sentence(run: dict[str, Any]) -> str:
    return (
        f"{run['tokens_per_second']:.1f} tokens/s, peak {run['peak_memory_bytes'] / 2**30:.2f} GiB,"
        f" start-up {run['startup_seconds']:.0f} s, training {run['train_seconds']:.0f} s"
        f" ({run['processor_seconds']:.0f} of processor),"
        f" loss {run['losses'][0]:.4f} to {run['losses'][-1]:.4f}"
    )


def table(arms: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'':14} {'tokens/s':>9} {'peak GiB':>9} {'start-up s':>11} {'loss first':>11} {'loss last':>10}"]
    for arm, found in arms.items():
        memory = found["peak_memory_bytes"] / 2**30
        first, last = found["losses"][0], found["losses"][-1]
        speed, startup = found["tokens_per_second"], found["startup_seconds"]
        lines.append(f"{arm:14} {speed:9.1f} {memory:9.2f} {startup:11.1f} {first:11.4f} {last:10.4f}")
    for arm, found in arms.items():
        if ratios := found.get("luthier_against_it"):
            lines.append(
                f"luthier against {arm}: {ratios['speed']:.2f} x its tokens/s, {ratios['memory']:.2f} x its memory,"
                f" losses differ by at most {ratios['largest_loss_difference']:.4f}"
            )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    facts = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    return {
        "processor": facts.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "instructions": [flag for flag in wanted if flag in facts.get("flags", "").split()],
        "load_at_end": os.getloadavg()[0],
        "python": platform.python_version(),
    }


def public(task: dict[str, Any]) -> dict[str, Any]:
    """The task without this machine's folders."""
    return {key: value for key, value in task.items() if key not in ("data", "ordered_data", "folder", "model")}


if __name__ == "__main__":
    main()
