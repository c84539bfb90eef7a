"""Choose the items that a report shows side by side: those on which methods differ come first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.compare.plan import BASE, Plan
from luthier.compare.runs import RunOutcome
from luthier.evals.base import Item

MOST_ITEMS = {"target": 12, "retain": 4}
MOST_CHARACTERS = 6_000


def samples(
    plan: Plan, bases: Mapping[str, RunOutcome], runs_of: Mapping[str, list[RunOutcome]]
) -> list[dict[str, Any]]:
    """The same items over the base model and every method, at the first seed that each has done.

    Args:
        plan: of the comparison.
        bases: evaluation of the base model by its folder.
        runs_of: runs of an arm by the arm's folder, in the order of the seeds.
    """
    chosen = []
    for folder, base in bases.items():
        first_runs: dict[str, RunOutcome] = {BASE: base}
        for arm in plan.arms:
            done = [run for run in runs_of[arm.folder] if run.done]
            if arm.base == folder and done:
                first_runs[arm.label] = done[0]
        for set_name, most in MOST_ITEMS.items():
            items_of = {label: _by_id(run, set_name) for label, run in first_runs.items() if run.items.get(set_name)}
            for key in _ranked(items_of)[:most]:
                chosen.append(_sample(set_name, key, items_of, first_runs))
    return chosen


def _by_id(run: RunOutcome, set_name: str) -> dict[str, Item]:
    return {item.id: item for item in run.items[set_name]}


def _ranked(items_of: Mapping[str, Mapping[str, Item]]) -> list[str]:
    """Ids of the items that all models answered.

    Items on which the trained models disagree come first, then items whose result training changed, then the rest;
    within a group in the order of the data.
    """
    first_model = next(iter(items_of.values()), {})
    common = [key for key in first_model if all(key in items for items in items_of.values())]

    def rank(key: str) -> int:
        scores = {label: items[key].score for label, items in items_of.items()}
        base_score = scores.pop(BASE, None)
        trained = set(scores.values())
        if len(trained) > 1:
            return 0
        return 2 if base_score is None or base_score in trained else 1

    return sorted(common, key=rank)


def _sample(
    set_name: str, key: str, items_of: Mapping[str, Mapping[str, Item]], first_runs: Mapping[str, RunOutcome]
) -> dict[str, Any]:
    item = next(iter(items_of.values()))[key]
    outputs = []
    for label, items in items_of.items():
        outputs.append(
            {
                "label": label,
                "seed": None if label == BASE else first_runs[label].task.seed,
                "prediction": items[key].prediction[:MOST_CHARACTERS],
                "score": items[key].score,
                "right": items[key].right,
                "finish": items[key].finish,
                "picture": items[key].pictures.get("prediction"),
            }
        )
    reference, prompt = item.reference[:MOST_CHARACTERS], item.prompt[:MOST_CHARACTERS]
    question = {"set": set_name, "id": key, "prompt": prompt, "reference": reference}
    return {**question, "pictures": dict(item.pictures), "outputs": outputs}
