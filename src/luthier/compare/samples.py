"""Which items are shown side by side: those that tell methods apart come first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.compare.plan import BASE, Plan
from luthier.compare.runs import FinishedRun
from luthier.evals.base import Item

SHOWN = {"target": 12, "retain": 4}
LONGEST = 6_000


def samples(
    plan: Plan, of_base: Mapping[str, FinishedRun], of_cell: Mapping[str, list[FinishedRun]]
) -> list[dict[str, Any]]:
    """The same items over the base and every method, at the first seed that each has done.

    Items on which the trained models disagree come first, then those where training changed the base's
    result, then the rest; within a group in the order of the data.
    """
    found = []
    for folder, base in of_base.items():
        cells = [cell for cell in plan.cells if cell.base == folder]
        firsts = {cell.label: next((run for run in of_cell[cell.folder] if run.done), None) for cell in cells}
        for name, shown in SHOWN.items():
            arms = {label: _by_id(run, name) for label, run in {BASE: base, **firsts}.items() if run is not None}
            filled = {label: items for label, items in arms.items() if items}
            common = [key for key in next(iter(filled.values()), {}) if all(key in items for items in filled.values())]
            ranked = sorted(common, key=lambda key: _dullness(filled, key))
            found += [_sample(name, key, filled, firsts) for key in ranked[:shown]]
    return found


def _by_id(run: FinishedRun, name: str) -> dict[str, Item]:
    return {item.id: item for item in run.items.get(name, [])}


def _dullness(arms: Mapping[str, Mapping[str, Item]], key: str) -> int:
    methods = {items[key].score for label, items in arms.items() if label != BASE}
    base = {items[key].score for label, items in arms.items() if label == BASE}
    return 0 if len(methods) > 1 else 1 if methods | base != methods else 2


def _sample(
    name: str, key: str, arms: Mapping[str, Mapping[str, Item]], firsts: Mapping[str, FinishedRun | None]
) -> dict[str, Any]:
    item = next(iter(arms.values()))[key]
    outputs = []
    for label, items in arms.items():
        run = firsts.get(label)
        outputs.append(
            {
                "label": label,
                "seed": run.task.seed if run else None,
                "prediction": items[key].prediction[:LONGEST],
                "score": items[key].score,
                "right": items[key].right,
                "finish": items[key].finish,
                "picture": items[key].pictures.get("prediction"),
            }
        )
    reference, prompt = item.reference[:LONGEST], item.prompt[:LONGEST]
    asked = {"set": name, "id": key, "prompt": prompt, "reference": reference}
    return {**asked, "pictures": dict(item.pictures), "outputs": outputs}
