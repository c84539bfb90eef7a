"""Assemble results.json, from which every report is drawn, from the runs of a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

from luthier import stats
from luthier.compare.plan import BASE, LEARNING_RATE, Arm, Plan, learning_rate
from luthier.compare.runs import RunOutcome
from luthier.compare.samples import samples
from luthier.compare.setup import differences, setup, warnings
from luthier.evals.retention import retention

FORM = 1
LEVEL = 0.05
CURVE_POINTS = 120
COSTS = (
    "tokens_per_second",
    "tokens",
    "target_tokens",
    "looked_tokens",
    "generated_tokens",
    "records",
    "updates",
    "trainable_parameters",
)


def assemble(
    plan: Plan,
    bases: Sequence[RunOutcome],
    tuning: Sequence[tuple[str, int, RunOutcome]],
    runs: Sequence[RunOutcome],
    chosen: Mapping[str, int],
) -> dict[str, Any]:
    """The document that `report/` draws from. Scores and shares are in [0, 1], times in seconds, memory in bytes.

    Args:
        plan: of the comparison.
        bases: evaluations of the untrained model.
        tuning: (arm's folder, index of the candidate, run) of every tuning run.
        runs: all runs of the table, also failed and missing ones.
        chosen: arm's folder → index of the candidate used.
    """
    base_runs = {run.task.folder: run for run in bases}
    runs_of: dict[str, list[RunOutcome]] = {arm.folder: [] for arm in plan.arms}
    for run in runs:
        runs_of[run.task.arm].append(run)

    rows = []
    for folder, run in base_runs.items():
        first_arm = next(arm for arm in plan.arms if arm.base == folder)
        rows.append(base_row(run, first_arm, several=len(base_runs) > 1))
    for arm in plan.arms:
        rows.append(method_row(plan, arm, runs_of[arm.folder], base_runs[arm.base], chosen))
    # Holm needs the p values of all rows, so changes come after the rows.
    _add_changes(plan, rows, runs_of, base_runs)

    every_run = [*bases, *(run for _, _, run in tuning), *runs]
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
        "failures": [_failure(run) for run in every_run if not run.done],
        "samples": samples(plan, base_runs, runs_of),
        "scores": _scores(plan, base_runs, runs_of),
        "curves": {arm.label: _curves(runs_of[arm.folder]) for arm in plan.arms},
        "setup": setup(plan, [*runs, *bases]),
    }


def base_row(run: RunOutcome, arm: Arm, several: bool) -> dict[str, Any]:
    """The row of the untrained model.

    Args:
        run: its evaluation.
        arm: one that is compared with it, for the values of the axes.
        several: axes change the held-out items, so the values belong to the row's name.
    """
    values = ", ".join(f"{path.rsplit('.', 1)[-1]}={value}" for path, value in arm.axes.items())
    retain = run.mean("retain")
    return {
        "label": f"{BASE}, {values}" if several and values else BASE,
        "kind": BASE,
        "method": BASE,
        "axes": dict(arm.axes),
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
    plan: Plan, arm: Arm, runs: Sequence[RunOutcome], base: RunOutcome, chosen: Mapping[str, int]
) -> dict[str, Any]:
    """The row of one arm: means over the seeds that are done."""
    done = [run for run in runs if run.done]
    tuned = plan.candidates[chosen[arm.folder]] if arm.folder in chosen else {}
    perplexities = [run.record["evaluation"].get("perplexity") for run in done]
    return {
        "label": arm.label,
        "kind": "method",
        "method": arm.method,
        "axes": dict(arm.axes),
        "learning_rate": tuned.get(LEARNING_RATE, learning_rate(arm.settings)),
        "tuned": dict(tuned),
        "seeds_done": [run.task.seed for run in done],
        "failed": len(plan.seeds) - len(done),
        "target": target(done) if done else None,
        "validation": _mean_score(done, "validation"),
        "retain": _retained(done, base),
        # A mean over a part of the seeds could not be compared with the score of all.
        "perplexity": fmean(perplexities) if done and None not in perplexities else None,
        "further": _further(done),
        "change": None,
        "cost": _cost(done) if done else None,
    }


def target(runs: Sequence[RunOutcome]) -> dict[str, Any]:
    """Mean score on the held-out items with its 95% interval, and each seed's mean; all in [0, 1]."""
    scores = [list(run.scores("target").values()) for run in runs]
    interval = stats.score_interval(scores)
    by_seed = [fmean(run) for run in scores]
    return {
        "mean": fmean(by_seed),
        "low": interval.low,
        "high": interval.high,
        "n": len(scores[0]),
        "by_seed": by_seed,
        "seed_sd": stdev(by_seed) if len(by_seed) > 1 else None,
    }


def _mean_score(runs: Sequence[RunOutcome], set_name: str) -> float | None:
    means = [run.mean(set_name) for run in runs]
    scored = [mean for mean in means if mean is not None]
    return fmean(scored) if scored else None


def _further(runs: Sequence[RunOutcome]) -> dict[str, float]:
    """Means over runs of the numbers that never rank methods, by name."""
    numbers = [run.record.get("evaluation", {}).get("further", {}) for run in runs]
    means = {}
    for name in numbers[0] if numbers else ():
        means[name] = fmean(of_run[name] for of_run in numbers)
    return means


def _retained(runs: Sequence[RunOutcome], base: RunOutcome) -> dict[str, Any] | None:
    """How much of what the base model had right is right after training: means over runs."""
    evaluated = [run for run in runs if "retain" in run.items]
    if not evaluated or not base.done or not base.items.get("retain"):
        return None
    retentions = [retention(base.items["retain"], run.items["retain"]) for run in evaluated]
    kept = [of_run.kept for of_run in retentions if of_run.kept is not None]
    return {
        "mean": _mean_score(runs, "retain"),
        "kept": fmean(kept) if kept else None,
        "net_change": fmean(of_run.net_change for of_run in retentions) / 100,  # points → share
        "base_right": retentions[0].base_right,
        "n": len(base.items["retain"]),
    }


def _cost(runs: Sequence[RunOutcome]) -> dict[str, Any]:
    train = [run.record["train"] for run in runs]
    seconds = [run.record["seconds"] for run in runs]

    def mean(numbers: list[Any]) -> float | None:
        return None if None in numbers else fmean(numbers)

    means = {}
    for name in COSTS:
        means[name] = mean([facts.get(name) for facts in train])
    return {
        **means,
        # The highest, not the mean: the memory that a machine must have.
        "peak_memory_bytes": max((facts.get("peak_memory_bytes") or 0 for facts in train), default=0) or None,
        "estimated_memory_bytes": mean([facts.get("estimated_memory_bytes") for facts in train]),
        "train_seconds": mean([_method_seconds(run.record) for run in runs]),
        "evaluate_seconds": mean([phases.get("evaluate") for phases in seconds]),
        "load_seconds": mean([phases.get("load") for phases in seconds]),
    }


def _method_seconds(record: Mapping[str, Any]) -> float | None:
    """Seconds that a method takes: training, steps that sample or choose, and score passes, also reused ones.

    A run that found another run's score pass would look cheaper than its method is.
    """
    own, reused = record["seconds"], record.get("reused_seconds", {})
    spent = [seconds for phase, seconds in own.items() if phase not in ("load", "save", "evaluate")]
    return math.fsum([*spent, *reused.values()]) if "train" in own else None


def _add_changes(
    plan: Plan,
    rows: list[dict[str, Any]],
    runs_of: Mapping[str, list[RunOutcome]],
    base_runs: Mapping[str, RunOutcome],
) -> None:
    """Compare each method with the baseline at the same axis values, and adjust the p values of all rows by Holm."""
    compared: list[tuple[dict[str, Any], stats.Difference]] = []
    by_label = {row["label"]: row for row in rows if row["kind"] == "method"}
    untrained = plan.baseline == BASE
    for arm in plan.arms:
        if arm.method == plan.baseline:
            by_label[arm.label]["change"] = {"verdict": "baseline"}
            continue
        if untrained:
            baseline = [base_runs[arm.base]]
        else:
            # At other axis values the budget or the data differ: only the baseline at the same values is comparable.
            same = next(other for other in plan.arms if other.method == plan.baseline and other.axes == arm.axes)
            baseline = runs_of[same.folder]
        difference = compared_arms(baseline, runs_of[arm.folder], untrained)
        if difference is not None:
            compared.append((by_label[arm.label], difference))
    adjusted = stats.holm([difference.p for _, difference in compared])
    for (row, difference), p in zip(compared, adjusted, strict=True):
        row["change"] = {**asdict(difference), "p_adjusted": p, "verdict": "differs" if p < LEVEL else "n.s."}


def compared_arms(
    baseline: Sequence[RunOutcome], other: Sequence[RunOutcome], untrained: bool
) -> stats.Difference | None:
    """`other` minus `baseline` on the items that all their runs share; None where there is nothing to compare.

    Args:
        baseline: runs of the baseline.
        other: runs of the arm that is compared with it.
        untrained: the baseline is the base model, which has no seeds.
    """
    first, second = [run for run in baseline if run.done], [run for run in other if run.done]
    if not first or not second:
        return None
    if min(len(first), len(second)) == 1 and not untrained:
        # With one run on a side only two models can be compared: take those of one seed where there is one.
        pairs = [(a, b) for a in first for b in second if a.task.seed == b.task.seed] or [(first[0], second[0])]
        first, second = [pairs[0][0]], [pairs[0][1]]
    by_item = [run.scores("target") for run in (*first, *second)]
    common, scores = _on_common_items(by_item)
    if not common:
        return None
    return stats.difference(scores[: len(first)], scores[len(first) :], untrained=untrained)


def _on_common_items(by_item: Sequence[Mapping[str, float]]) -> tuple[list[str], list[list[float]]]:
    """Ids of the items that all runs scored, and each run's scores of them: a paired test needs the same items."""
    common = sorted(set.intersection(*map(set, by_item))) if by_item else []
    scores = []
    for of_run in by_item:
        scores.append([of_run[key] for key in common])
    return common, scores


def _metric(runs: Sequence[RunOutcome]) -> dict[str, Any]:
    first = next((run.record["evaluation"] for run in runs if run.done), {})
    target_set, retain_set = first.get("target", {}), first.get("retain") or {}
    return {"name": target_set.get("metric"), "n": target_set.get("n"), "retain_n": retain_set.get("n")}


def _counts(runs: Sequence[RunOutcome]) -> str:
    """The unit of speed and data: tokens, or records where the modality has none."""
    return next((run.record["train"].get("counts", "tokens") for run in runs if run.done), "tokens")


def _best(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The best method on validation; None where two are equal. The target items only report, they choose nothing."""
    scored = [row for row in rows if row["kind"] == "method" and row["validation"] is not None]
    scored.sort(key=lambda row: row["validation"], reverse=True)
    alone = len(scored) > 1 and scored[0]["validation"] > scored[1]["validation"]
    return scored[0]["label"] if alone else None


def _nothing_to_keep(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if any(row["retain"] and row["retain"]["base_right"] == 0 for row in rows):
        return ["The untrained model has no retain item right: this set cannot show what is forgotten."]
    return []


def _tuning(plan: Plan, tuning: Sequence[tuple[str, int, RunOutcome]], chosen: Mapping[str, int]) -> dict[str, Any]:
    labels = {arm.folder: arm.label for arm in plan.arms}
    runs = []
    for arm, index, run in tuning:
        facts = {
            "label": labels[arm],
            "values": dict(plan.candidates[index]),
            "seed": run.task.seed,
            "status": run.status,
            "validation": run.mean("validation"),
            "chosen": chosen.get(arm) == index,
            "seconds": sum(seconds or 0 for seconds in run.record.get("seconds", {}).values()),
        }
        runs.append(facts)
    return {"runs": runs, "seconds": math.fsum(run["seconds"] for run in runs)}


def _failure(run: RunOutcome) -> dict[str, Any]:
    return {
        "cell": run.task.arm,  # results.json of older comparisons name it so
        "seed": run.task.seed,
        "folder": run.task.folder,
        "status": run.status,
        "error": run.error,
        "log": list(run.log),
    }


def _scores(
    plan: Plan, base_runs: Mapping[str, RunOutcome], runs_of: Mapping[str, list[RunOutcome]]
) -> list[dict[str, Any]]:
    """Scores of the items that all runs share, by seed: one table for each evaluation of the base model."""
    tables = []
    for folder, base in base_runs.items():
        done = {BASE: [base] if base.done else []}
        for arm in plan.arms:
            if arm.base == folder:
                done[arm.label] = [run for run in runs_of[arm.folder] if run.done]

        labels, by_item = [], []
        for label, runs in done.items():
            labels += [label] * len(runs)
            by_item += [run.scores("target") for run in runs]
        items, of_runs = _on_common_items(by_item)
        scores: dict[str, list[list[float]]] = {}
        for label, of_run in zip(labels, of_runs, strict=True):
            scores.setdefault(label, []).append(of_run)
        tables.append({"items": items, "scores": scores})
    return tables


def _curves(runs: Sequence[RunOutcome]) -> list[dict[str, Any]]:
    return [_curve(run) for run in runs if run.metrics]


def _curve(run: RunOutcome) -> dict[str, Any]:
    """Loss and negative log-likelihood against progress, averaged into at most 120 points: a page stays small."""
    size = math.ceil(len(run.metrics) / CURVE_POINTS)
    blocks = [run.metrics[start : start + size] for start in range(0, len(run.metrics), size)]

    def means(key: str) -> list[float | None]:
        curve: list[float | None] = []
        for block in blocks:
            numbers = [line[key] for line in block if line.get(key) is not None]
            curve.append(fmean(numbers) if numbers else None)
        return curve

    return {"seed": run.task.seed, "progress": means("progress"), "loss": means("loss"), "nll": means("nll")}
