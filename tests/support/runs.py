"""A small recipe on nano with its data, and a run that is killed at its first checkpoint."""

import json

import pytest

from luthier.engine.trainer import Trainer
from luthier.recipe import load_recipe
from luthier.steps.run import run_recipe


def with_words(folder):
    """The folder with data.jsonl: 75 words to reverse."""
    words = [f"{a}{b}{c}" for a in "abcde" for b in "fghij" for c in "klm"]
    lines = [json.dumps({"prompt": f"reverse {word}", "completion": word[::-1]}) for word in words]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def recipe(folder, *overrides, **more):
    content = {
        "model": "nano",
        "data": {"train": "data.jsonl", "validation": 6, "test": 10},
        "train": {"tuner": {"kind": "lora", "r": 4}, "batch": {"records": 8}},
        "budget": {"updates": 3},
        "evaluate": {"metric": "exact"},
        "generate": {"max_new_tokens": 8},
    }
    return load_recipe({**content, **more}, overrides=list(overrides), base=folder)


def run_recipe_until_killed(settings, folder):
    save = Trainer.save

    def save_and_die(self):
        save(self)
        raise KeyboardInterrupt

    Trainer.save = save_and_die
    try:
        with pytest.raises(KeyboardInterrupt):
            run_recipe(settings, folder, [])
    finally:
        Trainer.save = save
