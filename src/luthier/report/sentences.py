"""The sentences of a report: findings that the statistics support, notes on the columns, limitations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.report.numbers import count, duration, interval, p_value, points, rate, setting_text, signed

Results = Mapping[str, Any]


def methods_of(results: Results) -> list[Mapping[str, Any]]:
    """The rows of methods of which at least one run succeeded."""
    return [row for row in results["rows"] if row["kind"] == "method" and row["target"]]


def speaks_of_methods(results: Results) -> bool:
    """Whether the comparison has several seeds: with one seed it says something of these models, not of the methods."""
    return len(results["seeds"]) > 1


def headline(results: Results) -> str:
    """The one sentence to read first."""
    rows = methods_of(results)
    if not rows:
        return "No method has a result: every run failed."
    parts = [f"{row['label']} {points(row['target']['mean'])}" for row in rows]
    base = next((row for row in results["rows"] if row["kind"] == "base" and row["target"]), None)
    before = f"from {points(base['target']['mean'])} for the untrained model to " if base else ""
    several = "the mean score goes " if speaks_of_methods(results) else "the score goes "
    where = f"On {count(results['metric']['n'])} held-out items, "
    seeds = f" (means over {len(results['seeds'])} seeds)" if speaks_of_methods(results) else ""
    return f"{where}{several if base else 'scores are '}{before}{listed(parts)}{seeds}."


def findings(results: Results) -> list[str]:
    """Which differences are real and which are not detectable, one sentence each."""
    rows = methods_of(results)
    sentences = []
    if not speaks_of_methods(results):
        sentences.append(
            "One run each: these models, not these methods. Another run of each could turn their order around; "
            "--seeds 3 compares methods."
        )
    compared = [row for row in rows if row["change"] and row["change"]["verdict"] != "baseline"]
    for row in compared:
        if row["change"]["verdict"] == "differs":
            sentences.append(_difference(row, results["baseline"]))
    same = [row for row in compared if row["change"]["verdict"] == "n.s."]
    if same:
        names = listed([row["label"] for row in same])
        verb = "does" if len(same) == 1 else "do"
        # "Not detectable" is worth as much as the widest interval is narrow, so the sentence names its end.
        reach = max(max(abs(row["change"]["low"]), abs(row["change"]["high"])) for row in same)
        sentences.append(
            f"{names} {verb} not differ detectably from {results['baseline']} "
            f"(the intervals reach as far as {points(reach)} points)."
        )
    if results["best_on_validation"]:
        best = "method" if speaks_of_methods(results) else "model"
        sentences.append(f"Best {best} on validation (the set to choose on): {results['best_on_validation']}.")
    return sentences


def _difference(row: Mapping[str, Any], baseline: str) -> str:
    change = row["change"]
    size = f"{signed(change['delta'])} points, 95% interval {interval(change['low'], change['high'], sign=True)}"
    test = f"{p_value(change['p_adjusted'])} after Holm"
    if change["about"] == "methods":
        return f"{row['label']} differs from {baseline}: {size}, {test}."
    return f"These two models differ on these items: {row['label']} against {baseline}, {size}, {test}."


def learning_rate_rule(results: Results) -> str:
    """How the learning rate of each method was chosen."""
    rule = results["learning_rate"]
    rates = {row["learning_rate"] for row in results["rows"] if row["kind"] == "method"}
    if rule["rule"] == "tune":
        grid: dict[str, dict[str, None]] = {}
        for candidate in rule["candidates"]:
            for path, setting in candidate.items():
                grid.setdefault(path, {})[setting_text(setting)] = None
        tried = "; ".join(f"{path} in {', '.join(settings)}" for path, settings in grid.items())
        return f"tuned for each method on validation ({tried})"
    if rule["rule"] == "advice":
        return "each method's own advice where the recipe says nothing"
    common = next(iter(rates)) if len(rates) == 1 else None
    if common is None:
        return "the same for all except where a method fixes its own"
    return f"the same for all ({rate(common)})"


def notes(results: Results) -> list[str]:
    """The lines under a table, which explain its columns."""
    metric, seeds = results["metric"], results["seeds"]
    lines = [
        f"target: mean {metric['name']} on {count(metric['n'])} held-out items, in points, with 95% interval; "
        f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}.",
        _test_note(results),
    ]
    if any(row["retain"] for row in results["rows"]):
        lines.append(
            f"retain: share of the {count(metric['retain_n'])} retain items the base had right that are still right; "
            "net: change of the share right, in points."
        )
    budget = ", ".join(f"{key} {value:g}" for key, value in results["budget"].items())
    lines.append(f"budget: {budget} for every method; learning rate: {learning_rate_rule(results)}.")
    others = [f"{row['label']} {count(other_tokens(row))}" for row in results["rows"] if other_tokens(row)]
    if others:
        lines.append(f"other tok: tokens scored to select rows, or generated; outside the budget: {', '.join(others)}.")
    if results["tuning"]["runs"]:
        spent, number = duration(results["tuning"]["seconds"]), len(results["tuning"]["runs"])
        lines.append(f"tuning: {number} runs, {spent} in all, outside the budget.")
    return lines


def other_tokens(row: Mapping[str, Any]) -> float:
    """Tokens that a method computed without training on them: scored to select rows, and generated."""
    cost = row["cost"] or {}
    return (cost.get("looked_tokens") or 0) + (cost.get("generated_tokens") or 0)


def _test_note(results: Results) -> str:
    if speaks_of_methods(results):
        single = any((row["change"] or {}).get("about") == "models" for row in results["rows"])
        exception = "; where one run is left, an exact paired test of two models" if single else ""
        return (
            f"change: difference from {results['baseline']}; Student's t over seeds with the larger of seed and item "
            f"variance{exception}; verdict after Holm over all rows (the interval is for its row alone)."
        )
    return (
        f"change: difference from {results['baseline']} of these two models on these items; exact paired test, verdict "
        "after Holm over all rows (the interval is for its row alone)."
    )


def limitations(results: Results) -> list[str]:
    """Sentences on what the comparison cannot show, whatever its numbers are."""
    sentences = [
        "One model, one data set, one budget: another of any of them may order the methods differently.",
        "n.s. means that no difference was shown, not that there is none.",
        "Perplexity is shown and never ranks methods: objectives that let go of hard tokens score better and predict "
        "worse. Losses of different objectives are not comparable either.",
        "Speed and memory are of this machine and its load at that time.",
    ]
    if not speaks_of_methods(results):
        sentences.insert(0, "With one seed nothing is known about another run of a method; --seeds 3 compares methods.")
    elif len(results["seeds"]) == 2:
        sentences.insert(0, "Two seeds leave two degrees of freedom: only large differences can be seen.")
    if results["learning_rate"]["rule"] == "same":
        sentences.append("With one learning rate for all, a method may lose only because that rate does not suit it.")
    if not results["setup"]["repeatable"]:
        sentences.append("Some runs cannot be repeated bit for bit on this machine.")
    return sentences


def listed(names: Sequence[str]) -> str:
    """The names in one phrase: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def speed_title(results: Results) -> str:
    """The title of the speed column: tokens per second, or records per second where the modality has no tokens."""
    return "tok/s" if results.get("counts", "tokens") == "tokens" else f"{results['counts']}/s"
