"""The metric of a recipe's held-out records, with its reason and worked examples."""

from __future__ import annotations

from luthier.data.prepare import Prepared
from luthier.data.render import Renderer
from luthier.evals.worked import ExplainedMetric, explain_metric
from luthier.modalities.language.workspace import set_of
from luthier.recipe import Recipe

WAYS = {
    "choice": "the most likely of the record's choices counts as the answer",
    "perplexity": "by the likelihood of the reference; nothing is generated",
    "preference_accuracy": "by whether the chosen answer is likelier than the rejected one",
}
"""Metric that compares no texts → how it scores."""


def metric_choice(recipe: Recipe, prepared: Prepared, renderer: Renderer) -> ExplainedMetric | None:
    """The metric of the test records, or of those of validation if there is no test; None without either."""
    for name in ("target", "validation"):
        records, metric = set_of(recipe, prepared, name)
        if records:
            return explain_metric(records, renderer, metric, recipe.base)
    return None
