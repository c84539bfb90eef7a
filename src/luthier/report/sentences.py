"""Sentences: what a comparison may say, and what it may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.report.numbers import count, duration, interval, p_value, plain, points, rate, signed

Results = Mapping[str, Any]


def methods_of(results: Results) -> list[Mapping[str, Any]]:
    """The rows of methods that have a result."""
    return [row for row in results["rows"] if row["kind"] == "method" and row["target"]]


def speaks_of_methods(results: Results) -> bool:
    """Whether any comparison rests on several seeds."""
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
    """What may be said about differences, one sentence each."""
    rows = methods_of(results)
    found = []
    if not speaks_of_methods(results):
        found.append(
            "One run each: these models, not these methods. Another run of each could turn their order around; "
            "--seeds 3 compares methods."
        )
    compared = [row for row in rows if row["change"] and row["change"]["verdict"] != "baseline"]
    found += [_difference(row, results["baseline"]) for row in compared if row["change"]["verdict"] == "differs"]
    same = [row for row in compared if row["change"]["verdict"] == "n.s."]
    if same:
        names = listed([row["label"] for row in same])
        verb = "does" if len(same) == 1 else "do"
        reach = max(max(abs(row["change"]["low"]), abs(row["change"]["high"])) for row in same)
        found.append(
            f"{names} {verb} not differ detectably from {results['baseline']} "
            f"(the intervals reach as far as {points(reach)} points)."
        )
    if results["best_on_validation"]:
        what = "method" if speaks_of_methods(results) else "model"
        found.append(f"Best {what} on validation (the set to choose on): {results['best_on_validation']}.")
    return found


def _difference(row: Mapping[str, Any], baseline: str) -> str:
    change = row["change"]
    size = f"{signed(change['delta'])} points, 95% interval {interval(change['low'], change['high'], sign=True)}"
    test = f"{p_value(change['p_adjusted'])} after Holm"
    if change["about"] == "methods":
        return f"{row['label']} differs from {baseline}: {size}, {test}."
    return f"These two models differ on these items: {row['label']} against {baseline}, {size}, {test}."


def learning_rate_rule(results: Results) -> str:
    """How each method came to its learning rate."""
    rule = results["learning_rate"]
    rates = {row["learning_rate"] for row in results["rows"] if row["kind"] == "method"}
    if rule["rule"] == "tune":
        paths: dict[str, list[str]] = {}
        for values in rule["candidates"]:
            for path, value in values.items():
                paths.setdefault(path, [])
                if plain(value) not in paths[path]:
                    paths[path].append(plain(value))
        tried = "; ".join(f"{path} in {', '.join(values)}" for path, values in paths.items())
        return f"tuned for each method on validation ({tried})"
    if rule["rule"] == "advice":
        return "each method's own advice where the recipe says nothing"
    one = next(iter(rates)) if len(rates) == 1 else None
    return "the same for all" + (f" ({rate(one)})" if one is not None else " except where a method fixes its own")


def notes(results: Results) -> list[str]:
    """The lines under a table: what each column means."""
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
        lines.append(f"other tok: looked at to choose, or generated, outside the budget: {', '.join(others)}.")
    if results["tuning"]["runs"]:
        spent, number = duration(results["tuning"]["seconds"]), len(results["tuning"]["runs"])
        lines.append(f"tuning: {number} runs, {spent} in all, outside the budget.")
    return lines


def other_tokens(row: Mapping[str, Any]) -> float:
    """What a method computed beside training: tokens looked at and tokens generated."""
    cost = row["cost"] or {}
    return (cost.get("looked_tokens") or 0) + (cost.get("generated_tokens") or 0)


def _test_note(results: Results) -> str:
    if speaks_of_methods(results):
        alone = any((row["change"] or {}).get("about") == "models" for row in results["rows"])
        left = "; where one run is left, an exact paired test of two models" if alone else ""
        return (
            f"change: difference from {results['baseline']}; Student's t over seeds with the larger of seed and item "
            f"variance{left}; verdict after Holm over all rows (the interval is for its row alone)."
        )
    return (
        f"change: difference from {results['baseline']} of these two models on these items; exact paired test, verdict "
        "after Holm over all rows (the interval is for its row alone)."
    )


def limitations(results: Results) -> list[str]:
    """What the comparison cannot tell, whatever it shows."""
    found = [
        "One model, one data set, one budget: another of any of them may order the methods differently.",
        "n.s. means that no difference was shown, not that there is none.",
        "Perplexity is shown and never ranks methods: objectives that let go of hard tokens score better and predict "
        "worse. Losses of different objectives are not comparable either.",
        "Speed and memory are of this machine and its load at that time.",
    ]
    if not speaks_of_methods(results):
        found.insert(0, "With one seed nothing is known about another run of a method; --seeds 3 compares methods.")
    elif len(results["seeds"]) == 2:
        found.insert(0, "Two seeds leave two degrees of freedom: only large differences can be seen.")
    if results["learning_rate"]["rule"] == "same":
        found.append("With one learning rate for all, a method may lose only because that rate does not suit it.")
    if not results["setup"]["repeatable"]:
        found.append("Some runs cannot be repeated bit for bit on this machine.")
    return found


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def speed_title(results: Results) -> str:
    """What the column of speeds counts: tokens, or records that have none."""
    return "tok/s" if results.get("counts", "tokens") == "tokens" else f"{results['counts']}/s"
