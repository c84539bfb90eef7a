"""What a recipe's steps do: train, evaluate, check, and the process that a comparison starts for each run.

Steps put the rooms below together and are the only place that does. A step leaves its results in the
run's folder: run.json, metrics.jsonl, evaluation.jsonl, samples.jsonl, model/.
"""

from luthier.steps.run import run_recipe as run_recipe
