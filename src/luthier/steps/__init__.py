"""What a recipe's steps do: train, evaluate, check, and the process that a comparison starts for each run.

Steps put the rooms below together and are the only place that does. A step leaves its results in the
run's folder: run.json, metrics.jsonl, evaluation.jsonl, samples.jsonl, model/.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.steps.run import run_recipe as run_recipe


def __getattr__(name: str) -> Any:
    """`run_recipe` when it is first used: a verb is looked at without what running it needs."""
    if name != "run_recipe":
        raise AttributeError(f"module 'luthier.steps' has no attribute {name!r}")
    from luthier.steps.run import run_recipe

    return run_recipe
