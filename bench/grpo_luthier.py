"""Luthier's half of grpo.py, in Luthier's own environment: `python grpo_luthier.py TASK.json`, told when to go on."""

import json
import sys
from pathlib import Path

from turns import Turns

from luthier.modalities.open import open_workspace
from luthier.recipe import load_recipe
from luthier.runs.run import Run
from luthier.steps.train import training


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text())
    recipe = load_recipe(
        {
            "name": "grpo",
            "model": {"path": task["model"], "dtype": "float32"},
            "data": {"train": task["data"], "validation": None, "test": None},
            "reward": ["./letters.py"],
            "train": {
                "tuner": "full",
                "optimizer": {"kind": "adamw", "lr": task["learning_rate"], "weight_decay": 0.0, "clip": 1.0},
                "schedule": {"kind": "constant"},
                "batch": {"records": task["prompts"]},
                "precision": "float32",
                "save": {"every": None},
            },
            "rl": {
                "strategy": {"kind": "plain", "group": task["group"]},
                "generate": {"max_new_tokens": task["new"], "temperature": 1.0},
            },
            "budget": {"updates": task["updates"]},
            "evaluate": {"perplexity": False},
        },
        methods=["grpo"],
        base=Path(__file__).parent,
    )
    turns = Turns()

    def observe(event: dict) -> None:
        if event.get("event") == "update":
            turns.done(length=event["length"], reward=event["reward"], loss=event["loss"])

    trainer, _ = training(Run(recipe, Path(task["folder"])), open_workspace(recipe, None), observe, lambda: False)
    turns.wait()
    trainer.train()


if __name__ == "__main__":
    main()
