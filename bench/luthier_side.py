"""Luthier's half of beside_trl.py: `python luthier_side.py TASK.json`, in Luthier's own environment."""

import json
import shutil
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    if task["do"] == "order":
        print(json.dumps(order(task)))
    else:
        Path(task["result"]).write_text(json.dumps(train(task)))


def model_folder(task: dict[str, Any]) -> Path | str:
    from luthier.models.loading.load import resolve_model

    return resolve_model(task["model"], Path.cwd())


def order(task: dict[str, Any]) -> dict[str, Any]:
    """The rows in the order in which the first epoch draws them, and each row's prompt as the model reads it."""
    from transformers import AutoTokenizer

    from luthier.data.batches import data_order
    from luthier.data.render import Renderer
    from luthier.data.sources import load_records

    folder = model_folder(task)
    renderer = Renderer(AutoTokenizer.from_pretrained(folder))
    records = load_records(task["data"], Path.cwd())
    indices = data_order([record.id for record in records], task["seed"], 0)
    return {"order": indices, "prompts": [renderer.prompt_text(records[i]) for i in indices], "model": str(folder)}


def train(task: dict[str, Any]) -> dict[str, Any]:
    import torch

    from luthier.recipe import load_recipe
    from luthier.run_folder import read_jsonl
    from luthier.steps.run import run_recipe

    folder = Path(task["folder"]) / "luthier"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    metrics, first_seen = folder / "metrics.jsonl", []
    threading.Thread(target=wait_for, args=(metrics, first_seen), daemon=True).start()
    result = run_recipe(load_recipe(recipe(task)), folder, [])
    updates = [line for line in read_jsonl(metrics) if "loss" in line]
    began = first_seen[0] - updates[0]["seconds"]
    before = result["seconds"].get("score", 0.0) if task["objective"] == "asft" else 0.0  # dpo's is start-up for both
    return {
        "began": began - before,
        "update_times": [began + update["seconds"] for update in updates],
        "losses": [update["loss"] for update in updates],
        "tokens": result["train"]["tokens"],
        "target_tokens": result["train"]["target_tokens"],
        "estimated_memory_bytes": result["train"]["estimated_memory_bytes"],
        "versions": {name: version(name) for name in ("luthier", "transformers", "torch")},
        "threads": torch.get_num_threads(),
    }


def wait_for(path: Path, seen: list[float]) -> None:
    """Note when a file gets its first line: the end of the first update."""
    while not path.exists() or path.stat().st_size == 0:
        time.sleep(0.005)
    seen.append(time.time())


def recipe(task: dict[str, Any]) -> dict[str, Any]:
    optimizer = {"kind": "adamw", "lr": task["learning_rate"], "betas": task["betas"], "clip": task["clip"]}
    return {
        "name": "beside-trl",
        "model": task["model"],
        "data": {
            "train": task["data"],
            "validation": None,
            "test": None,
            "max_tokens": task["max_tokens"],
            "deduplicate": False,
        },
        "train": {
            "objective": task["objective"],
            "tuner": "full",
            "optimizer": {**optimizer, "weight_decay": 0.0},
            "schedule": {"kind": "constant"},
            "batch": {"records": task["batch"]},
            "precision": task["precision"],
            "save": {"every": None},
        },
        "budget": {"epochs": 1},
        "evaluate": {"perplexity": False},
        "seed": task["seed"],
    }


if __name__ == "__main__":
    main()
