"""The steps of a recipe: train, evaluate, check, and the verbs of pipelines.

Steps put the packages below them together, and are the only place that does. A step writes into the run's folder:
run.json, metrics.jsonl, evaluation.jsonl, samples.jsonl, model/.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.steps.run import run_recipe as run_recipe


def __getattr__(name: str) -> Any:
    """`run_recipe`, imported at its first use: listing the verbs must not import what running them needs."""
    if name != "run_recipe":
        raise AttributeError(f"module 'luthier.steps' has no attribute {name!r}")
    from luthier.steps.run import run_recipe

    return run_recipe
