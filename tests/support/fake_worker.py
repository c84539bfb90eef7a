"""A worker that trains nothing: it writes what a real one would, from task.json and a folder's orders.

FAKE_ORDERS in the environment is JSON: {"crash": [cell folder parts], "kill": [...], "items": n, "sleep": s, ...}.
"""

import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path

SKILL = {"sft": 1.2, "dft": 1.25, "asft": 1.9}
VERSIONS = {"luthier": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.9"}
HARDWARE = {"processor": "2 × Xeon", "gpu": None, "memory_bytes": 16_000_000_000}


def main(folder: Path) -> int:
    task = json.loads((folder / "task.json").read_text())
    orders = json.loads(os.environ.get("FAKE_ORDERS", "{}"))
    with (folder / "started.txt").open("a") as handle:
        handle.write("started\n")
    signal.signal(signal.SIGTERM, lambda *_: stop(folder, task))
    name = str(folder)
    with (folder / "progress.jsonl").open("a") as progress:
        for step in range(3):
            progress.write(json.dumps({"phase": "train", "done": step, "total": 3, "seconds_left": 3 - step}) + "\n")
            progress.flush()
            time.sleep(orders.get("sleep", 0))
    if any(piece in name for piece in orders.get("crash", [])):
        print("reading the data\nRuntimeError: the loss exploded at record r-17", file=sys.stderr)
        return 1
    if any(piece in name for piece in orders.get("kill", [])):
        os.kill(os.getpid(), signal.SIGKILL)
    if any(piece in name for piece in orders.get("refuse", [])):
        finish(folder, task, {"status": "failed", "error": "data.jsonl:3 has no `messages`."})
        return 2
    write_results(folder, task, orders)
    return 0


def stop(folder: Path, task: dict) -> None:
    finish(folder, task, {"status": "stopped", "error": "stopped by a signal"})
    sys.exit(1)


def write_results(folder: Path, task: dict, orders: dict) -> None:
    rate = task["recipe"]["recipe"]["train"]["optimizer"]["lr"] if task["do"] == "train" else 0
    evaluation, lines = {}, []
    for name in task["sets"]:
        items = evaluate(name, task, rate, orders.get("items", 40))
        lines += [{"set": name, **item} for item in items]
        evaluation[name] = {
            "metric": "json_fields" if name != "retain" else "mixed",
            "n": len(items),
            "mean": sum(item["score"] for item in items) / len(items),
        }
    evaluation["perplexity"] = 3.2 if task["do"] == "evaluate" else 1.4
    (folder / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {"status": "done", "error": None, "evaluation": evaluation, "versions": VERSIONS, "hardware": HARDWARE}
    record["seconds"] = {"load": 2.0, "train": 81.0, "evaluate": 20.0}
    if task["do"] == "train":
        record["train"] = train(folder, task)
    finish(folder, task, record)


def train(folder: Path, task: dict) -> dict:
    noise = random.Random(f"{task['method']}{task['seed']}")
    with (folder / "metrics.jsonl").open("w") as handle:
        for update in range(200):
            nll = 0.4 + 2.2 * math.exp(-update / 30) + noise.gauss(0, 0.06)
            scale = {"dft": 0.35}.get(task["method"], 1.0)
            line = {"update": update, "progress": (update + 1) / 200, "nll": nll, "loss": scale * nll}
            handle.write(json.dumps(line) + "\n")
    speed = {"sft": 812, "dft": 808}.get(task["method"], 604) + 3 * task["seed"]
    return {
        "updates": 200,
        "records": 3200,
        "tokens": 412_000,
        "target_tokens": 131_000,
        "seconds": 81.0,
        "tokens_per_second": speed,
        "peak_memory_bytes": 1_430_000_000 if speed > 700 else 1_690_000_000,
        "estimated_memory_bytes": 1_500_000_000,
        "trainable_parameters": 4_884_480,
        "repeatable": True,
        "data": {"counts": {"train": 1600, "validation": 213, "test": 320}, "duplicates": 12, "warnings": []},
    }


def evaluate(name: str, task: dict, rate: float, number: int) -> list[dict]:
    """Items of fixed difficulty, a method's skill, a seed's luck; half the learning rate costs some skill."""
    luck = random.Random(f"{task['method']}-{task['seed']}-{rate}")
    skill = -3.0 if task["do"] == "evaluate" else SKILL.get(task["method"], 1.0) + luck.gauss(0, 0.2)
    if task["do"] == "train" and rate < 1e-4:
        skill -= 1.0
    if name == "retain":
        skill = 1.5 if task["do"] == "evaluate" else 1.3
    items = []
    for index in range(number):
        difficulty = random.Random(f"{name}-{index}").gauss(0, 1.5)
        right = luck.random() < 1 / (1 + math.exp(difficulty - skill))
        items.append(item(name, index, right, task))
    return items


def item(name: str, index: int, right: bool, task: dict) -> dict:
    paid = index % 2 == 0
    reference = {"customer": f"Müller & Söhne {index}", "total": 12.5 + index, "currency": "EUR", "paid": paid}
    found = reference if right else {**reference, "total": 99, "paid": None}
    text = json.dumps(found, ensure_ascii=False)
    if task["do"] == "evaluate" and not right:
        text = "Sure! Here is the invoice you asked for <script>alert(1)</script>"
    return {
        "id": f"{name}-{index:04}",
        "prompt": f"Extract the invoice as JSON.\nInvoice {4400 + index}: Müller & Söhne {index}, {12.5 + index} EUR, "
        + ("paid." if index % 2 == 0 else "due in 30 days."),
        "reference": json.dumps(reference, ensure_ascii=False),
        "prediction": text,
        "score": float(right),
        "finish": "stop",
        "metric": "json_fields",
        "right": right,
    }


def finish(folder: Path, task: dict, record: dict) -> None:
    record = {"method": task["method"], "seed": task["seed"], **record}
    (folder / "run.json").write_text(json.dumps(record))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
