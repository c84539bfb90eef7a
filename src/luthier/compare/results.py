"""Everything a report shows, as one JSON document, from the runs of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

from luthier import stats
from luthier.compare.plan import BASE, LEARNING_RATE, Cell, Plan, learning_rate
from luthier.compare.runs import FinishedRun
from luthier.compare.samples import samples
from luthier.compare.setup import differences, setup, warnings
from luthier.evals.retention import retention

FORM = 1
LEVEL = 0.05
CURVE_POINTS = 120


def assemble(
    plan: Plan,
    bases: Sequence[FinishedRun],
    tuning: Sequence[tuple[str, int, FinishedRun]],
    runs: Sequence[FinishedRun],
    chosen: Mapping,
) -> dict[str, Any]:
    """The document that `report/` draws from. Scores and shares are in [0, 1], times in seconds.

    Args:
        plan: what was to be done.
        bases: evaluations of the untrained model.
        tuning: (cell's folder, index of the candidate, run) of every tuning run.
        runs: all runs of the table, also failed and missing ones.
        chosen: cell's folder → index of the candidate used.
    """
    of_base = {run.task.folder: run for run in bases}
    of_cell = {cell.folder: [run for run in runs if run.task.cell == cell.folder] for cell in plan.cells}
    base_cells = {cell.base: cell for cell in reversed(plan.cells)}
    rows = [base_row(run, base_cells[folder], len(of_base) > 1) for folder, run in of_base.items()]
    rows += [method_row(plan, cell, of_cell[cell.folder], of_base[cell.base], chosen) for cell in plan.cells]
    _add_changes(plan, rows, of_cell, of_base)
    return {
        "format": FORM,
        "name": plan.name,
        "metric": _metric([*runs, *bases]),
        "budget": dict(plan.settings["budget"]),
        "counts": _counts(runs),
        "seeds": list(plan.seeds),
        "baseline": plan.baseline,
        "learning_rate": {"rule": plan.rule, "candidates": [dict(values) for values in plan.candidates]},
        "level": LEVEL,
        "rows": rows,
        "best_on_validation": _best(rows),
        "tuning": _tuning(plan, tuning, chosen),
        "differences": differences(plan, chosen),
        "warnings": [*warnings(plan, runs), *_nothing_to_keep(rows)],
        "failures": [_failure(run) for run in [*bases, *(run for *_, run in tuning), *runs] if not run.done],
        "samples": samples(plan, of_base, of_cell),
        "scores": _scores(plan, of_base, of_cell),
        "curves": {cell.label: [_curve(run) for run in of_cell[cell.folder] if run.metrics] for cell in plan.cells},
        "setup": setup(plan, [*runs, *bases]),
    }


def base_row(run: FinishedRun, cell: Cell, several: bool) -> dict[str, Any]:
    """The row of the untrained model; with `several` its axis values are part of its name."""
    values = ", ".join(f"{path.rsplit('.', 1)[-1]}={value}" for path, value in cell.axes.items())
    retain = run.mean("retain")
    return {
        "label": f"{BASE}, {values}" if several and values else BASE,
        "kind": BASE,
        "method": BASE,
        "axes": dict(cell.axes),
        "learning_rate": None,
        "seeds_done": [run.task.seed] if run.done else [],
        "failed": int(not run.done),
        "target": target([run]) if run.done else None,
        "validation": run.mean("validation"),
        "retain": None if retain is None else {"mean": retain, "kept": None, "net_change": None, "base_right": None},
        "perplexity": run.record.get("evaluation", {}).get("perplexity"),
        "further": _further([run]),
        "change": None,
        "cost": None,
    }


def method_row(
    plan: Plan, cell: Cell, runs: Sequence[FinishedRun], base: FinishedRun, chosen: Mapping[str, int]
) -> dict[str, Any]:
    """The row of one method: means over the seeds that are done."""
    done = [run for run in runs if run.done]
    values = plan.candidates[chosen[cell.folder]] if cell.folder in chosen else {}
    perplexities = [run.record["evaluation"].get("perplexity") for run in done]
    validation = [score for run in done if (score := run.mean("validation")) is not None]
    return {
        "label": cell.label,
        "kind": "method",
        "method": cell.method,
        "axes": dict(cell.axes),
        "learning_rate": values.get(LEARNING_RATE, learning_rate(cell.settings)),
        "tuned": dict(values),
        "seeds_done": [run.task.seed for run in done],
        "failed": len(plan.seeds) - len(done),
        "target": target(done) if done else None,
        "validation": fmean(validation) if validation else None,
        "retain": _retained(done, base),
        "perplexity": fmean(perplexities) if done and None not in perplexities else None,
        "further": _further(done),
        "change": None,
        "cost": _cost(done) if done else None,
    }


def target(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    """Mean score on the held-out items with its interval, and each seed's mean."""
    scores = [[item.score for item in run.items["target"]] for run in runs]
    found = stats.score_interval(scores)
    by_seed = [fmean(run) for run in scores]
    return {
        "mean": fmean(by_seed),
        "low": found.low,
        "high": found.high,
        "n": len(scores[0]),
        "by_seed": by_seed,
        "seed_sd": stdev(by_seed) if len(by_seed) > 1 else None,
    }


def _further(runs: Sequence[FinishedRun]) -> dict[str, float]:
    """Means over runs of the numbers that decide nothing, by name."""
    found = [run.record.get("evaluation", {}).get("further", {}) for run in runs]
    return {name: fmean(one[name] for one in found) for name in (found[0] if found else ())}


def _retained(runs: Sequence[FinishedRun], base: FinishedRun) -> dict[str, Any] | None:
    pairs = [(base.items["retain"], run.items["retain"]) for run in runs if "retain" in run.items and base.done]
    if not pairs or not base.items.get("retain"):
        return None
    found = [retention(before, after) for before, after in pairs]
    kept = [one.kept for one in found if one.kept is not None]
    means = [score for run in runs if (score := run.mean("retain")) is not None]
    return {
        "mean": fmean(means) if means else None,
        "kept": fmean(kept) if kept else None,
        "net_change": fmean(one.net_change for one in found) / 100,
        "base_right": found[0].base_right,
        "n": len(base.items["retain"]),
    }


def _cost(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    train = [run.record["train"] for run in runs]
    seconds = [run.record["seconds"] for run in runs]

    def mean(values: list[Any]) -> float | None:
        return None if None in values else fmean(values)

    return {
        **{
            key: mean([one.get(key) for one in train])
            for key in (
                *("tokens_per_second", "tokens", "target_tokens", "looked_tokens", "generated_tokens"),
                *("records", "updates", "trainable_parameters"),
            )
        },
        "peak_memory_bytes": max((one.get("peak_memory_bytes") or 0 for one in train), default=0) or None,
        "estimated_memory_bytes": mean([one.get("estimated_memory_bytes") for one in train]),
        "train_seconds": mean([_method_seconds(run.record) for run in runs]),
        "evaluate_seconds": mean([one.get("evaluate") for one in seconds]),
        "load_seconds": mean([one.get("load") for one in seconds]),
    }


def _method_seconds(record: Mapping[str, Any]) -> float | None:
    """What the method takes: score passes, also those that another run paid, and steps that sample or choose."""
    own, reused = record["seconds"], record.get("reused_seconds", {})
    spent = [value for name, value in own.items() if name not in ("load", "evaluate")]
    return math.fsum([*spent, *reused.values()]) if "train" in own else None


def _add_changes(
    plan: Plan, rows: list[dict[str, Any]], of_cell: Mapping[str, list[FinishedRun]], of_base: Mapping[str, FinishedRun]
) -> None:
    """Each method against the baseline at the same axis values; Holm over all of them."""
    compared: list[tuple[dict[str, Any], stats.Difference]] = []
    by_label = {row["label"]: row for row in rows if row["kind"] == "method"}
    for cell in plan.cells:
        if cell.method == plan.baseline:
            by_label[cell.label]["change"] = {"verdict": "baseline"}
            continue
        if plan.baseline == BASE:
            arms = [of_base[cell.base]]
        else:
            same = next(c for c in plan.cells if c.method == plan.baseline and c.axes == cell.axes)
            arms = of_cell[same.folder]
        found = compared_arms(arms, of_cell[cell.folder], untrained=plan.baseline == BASE)
        if found is not None:
            compared.append((by_label[cell.label], found))
    adjusted = stats.holm([found.p for _, found in compared])
    for (row, found), p in zip(compared, adjusted, strict=True):
        row["change"] = {**asdict(found), "p_adjusted": p, "verdict": "differs" if p < LEVEL else "n.s."}


def compared_arms(
    baseline: Sequence[FinishedRun], other: Sequence[FinishedRun], untrained: bool
) -> stats.Difference | None:
    """The difference of two arms on the items that all their runs share, or None when there is nothing to compare."""
    first, second = [run for run in baseline if run.done], [run for run in other if run.done]
    if not first or not second:
        return None
    if min(len(first), len(second)) == 1 and not untrained:
        # With one run on a side only two models can be compared: take those of one seed where there is one.
        shared = [(a, b) for a in first for b in second if a.task.seed == b.task.seed] or [(first[0], second[0])]
        first, second = [shared[0][0]], [shared[0][1]]
    by_item = [{item.id: item.score for item in run.items["target"]} for run in (*first, *second)]
    common = sorted(set.intersection(*(set(scores) for scores in by_item)))
    if not common:
        return None
    scores = [[one[item] for item in common] for one in by_item]
    return stats.difference(scores[: len(first)], scores[len(first) :], untrained=untrained)


def _metric(runs: Sequence[FinishedRun]) -> dict[str, Any]:
    found = next((run.record["evaluation"]["target"] for run in runs if run.done), {})
    retain = next((run.record["evaluation"].get("retain") for run in runs if run.done), None) or {}
    return {"name": found.get("metric"), "n": found.get("n"), "retain_n": retain.get("n")}


def _counts(runs: Sequence[FinishedRun]) -> str:
    """What the runs' speed and data are counted in: tokens, or records that have none."""
    return next((run.record["train"].get("counts", "tokens") for run in runs if run.done), "tokens")


def _best(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The method chosen on validation, so that the target items only report."""
    scored = [row for row in rows if row["kind"] == "method" and row["validation"] is not None]
    scored.sort(key=lambda row: row["validation"], reverse=True)
    alone = len(scored) > 1 and scored[0]["validation"] > scored[1]["validation"]
    return scored[0]["label"] if alone else None


def _nothing_to_keep(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if any(row["retain"] and row["retain"]["base_right"] == 0 for row in rows):
        return ["The untrained model has no retain item right: this set cannot show what is forgotten."]
    return []


def _tuning(plan: Plan, tuning: Sequence[tuple[str, int, FinishedRun]], chosen: Mapping[str, int]) -> dict[str, Any]:
    labels = {cell.folder: cell.label for cell in plan.cells}
    runs = [
        {
            "label": labels[cell],
            "values": dict(plan.candidates[index]),
            "seed": run.task.seed,
            "status": run.status,
            "validation": run.mean("validation"),
            "chosen": chosen.get(cell) == index,
            "seconds": sum(value or 0 for value in run.record.get("seconds", {}).values()),
        }
        for cell, index, run in tuning
    ]
    return {"runs": runs, "seconds": math.fsum(run["seconds"] for run in runs)}


def _failure(run: FinishedRun) -> dict[str, Any]:
    return {
        "cell": run.task.cell,
        "seed": run.task.seed,
        "folder": run.task.folder,
        "status": run.status,
        "error": run.error,
        "log": list(run.log),
    }


def _scores(
    plan: Plan, of_base: Mapping[str, FinishedRun], of_cell: Mapping[str, list[FinishedRun]]
) -> list[dict[str, Any]]:
    """Per-item scores by seed, one table for each base evaluation (one, unless axes change the items)."""
    tables = []
    for folder, base in of_base.items():
        cells = [cell for cell in plan.cells if cell.base == folder]
        arms = {BASE: [base], **{cell.label: of_cell[cell.folder] for cell in cells}}
        done = {label: [run for run in runs if run.done] for label, runs in arms.items()}
        found = [{item.id: item.score for item in run.items["target"]} for runs in done.values() for run in runs]
        items = sorted(set.intersection(*(set(scores) for scores in found))) if found else []
        scores = {
            label: [[{i.id: i.score for i in run.items["target"]}[item] for item in items] for run in runs]
            for label, runs in done.items()
            if runs
        }
        tables.append({"items": items, "scores": scores})
    return tables


def _curve(run: FinishedRun) -> dict[str, Any]:
    """Loss and negative log-likelihood against progress, averaged into at most 120 points."""
    size = math.ceil(len(run.metrics) / CURVE_POINTS)
    blocks = [run.metrics[start : start + size] for start in range(0, len(run.metrics), size)]

    def means(key: str) -> list[float | None]:
        values = [[line[key] for line in block if line.get(key) is not None] for block in blocks]
        return [fmean(found) if found else None for found in values]

    return {"seed": run.task.seed, "progress": means("progress"), "loss": means("loss"), "nll": means("nll")}
