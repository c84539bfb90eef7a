"""The table as Markdown, CSV and LaTeX, and the set-up for a paper's appendix."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from luthier.report.numbers import (
    NONE,
    count,
    duration,
    gigabytes,
    interval,
    latex_text,
    markdown_text,
    percent,
    points,
    rate,
    setting_text,
    signed,
)
from luthier.report.sentences import Results, findings, headline, learning_rate_rule, limitations, notes, speed_title
from luthier.report.table import build_table

CHANGE = ("delta", "low", "high", "p", "p_adjusted", "verdict", "about", "wins", "losses")
COST = (
    "tokens_per_second",
    "peak_memory_bytes",
    "estimated_memory_bytes",
    "train_seconds",
    "evaluate_seconds",
    "tokens",
    "target_tokens",
    "looked_tokens",
    "generated_tokens",
    "records",
    "updates",
    "trainable_parameters",
)


def to_markdown(results: Results) -> str:
    """A page: headline, table, findings, notes, warnings, failures."""
    table = build_table(results)
    lines = [f"# {markdown_text(results['name'])}", "", markdown_text(headline(results)), ""]
    lines.append("| " + " | ".join(markdown_text(title) for title in table.titles) + " |")
    lines.append("| " + " | ".join("---" if index == 0 else "---:" for index in range(len(table.titles))) + " |")
    for row in table.rows:
        cells = [f"{cell.text} {cell.detail}".strip() for cell in row]
        lines.append("| " + " | ".join(markdown_text(cell) for cell in cells) + " |")
    lines += ["", *(f"- {markdown_text(line)}" for line in findings(results)), ""]
    lines += [f"<sub>{markdown_text(line)}</sub><br>" for line in notes(results)]
    if results["warnings"]:
        lines += ["", "**Warnings**", "", *(f"- {markdown_text(line)}" for line in results["warnings"])]
    if results["failures"]:
        lines += ["", "**Runs without a result**", ""]
        for failure in results["failures"]:
            reason = markdown_text(failure["error"] or "did not run")
            lines.append(f"- {markdown_text(failure['folder'])} ({failure['status']}): {reason}")
    return "\n".join([*lines, ""])


def to_csv(results: Results) -> str:
    """One line per row of the table, its numbers unformatted: shares in [0, 1], seconds, bytes."""
    axes = sorted(set().union(*(row["axes"] for row in results["rows"])))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _flat(results["rows"][0], axes).keys(), lineterminator="\n")
    writer.writeheader()
    for row in results["rows"]:
        writer.writerow({key: _no_formula(cell) for key, cell in _flat(row, axes).items()})
    return buffer.getvalue()


def _no_formula(cell: Any) -> Any:
    """A text cell that no table program takes for a formula; numbers stay numbers."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _flat(row: Mapping[str, Any], axes: list[str]) -> dict[str, Any]:
    target, retain = row["target"] or {}, row["retain"] or {}
    return {
        "row": row["label"],
        "method": row["method"],
        **{path: row["axes"].get(path) for path in axes},
        "learning_rate": row["learning_rate"],
        "seeds": " ".join(str(seed) for seed in row["seeds_done"]),
        "failed_runs": row["failed"],
        **{f"target_{key}": target.get(key) for key in ("mean", "low", "high", "n", "seed_sd")},
        "validation": row["validation"],
        **{f"change_{key}": (row["change"] or {}).get(key) for key in CHANGE},
        **{f"retain_{key}": retain.get(key) for key in ("mean", "kept", "net_change", "base_right")},
        "perplexity": row["perplexity"],
        **{key: (row["cost"] or {}).get(key) for key in COST},
    }


def to_latex(results: Results) -> str:
    """A booktabs table; a star marks differences that hold after Holm."""
    spread = " ($\\pm$ sd)" if len(results["seeds"]) > 1 else ""
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        "\\begin{tabular}{lrrrrrrrr}",
        "\\toprule",
        f"Method & Target{spread} & Change & 95\\% CI & Kept & Net & {speed_title(results)} & GB & lr \\\\",
        "\\midrule",
    ]
    for row in results["rows"]:
        lines.append(" & ".join(_latex_row(row)) + " \\\\")
        if row["kind"] == "base" and row is not results["rows"][-1]:
            lines.append("\\midrule")
    caption = " ".join([*findings(results), *notes(results)])
    return "\n".join(
        [*lines, "\\bottomrule", "\\end{tabular}", f"\\caption{{{latex_text(caption)}}}", "\\end{table}", ""]
    )


def _latex_row(row: Mapping[str, Any]) -> list[str]:
    target, change, retain, cost = row["target"], row["change"] or {}, row["retain"] or {}, row["cost"] or {}
    mean = NONE if target is None else points(target["mean"])
    spread = f" $\\pm$ {points(target['seed_sd'])}" if target and target["seed_sd"] is not None else ""
    star = "$^{*}$" if change.get("verdict") == "differs" else ""
    delta = signed(change["delta"]) if "delta" in change else ("baseline" if change and target else NONE)
    ends = interval(change["low"], change["high"], sign=True) if "delta" in change else NONE
    return [
        latex_text(row["label"]),
        latex_text(mean) + spread,
        latex_text(delta) + star,
        latex_text(ends),
        latex_text(percent(retain.get("kept"))),
        latex_text(signed(retain.get("net_change"))),
        latex_text(count(cost.get("tokens_per_second"))),
        latex_text(gigabytes(cost.get("peak_memory_bytes"))),
        latex_text(rate(row["learning_rate"])),
    ]


def to_setup(results: Results) -> str:
    """setup.md: what others need to repeat the comparison, for the appendix of a paper."""
    setup = results["setup"]
    lines = [f"# Set-up of {markdown_text(results['name'])}", "", "| what | value |", "| --- | --- |"]
    lines += [f"| {markdown_text(name)} | {markdown_text(value)} |" for name, value in setup_facts(results)]
    lines += ["", "## What differs between columns", ""]
    lines += [f"- {markdown_text(line)}" for line in difference_lines(results)] or ["- Nothing but the method's name."]
    lines += ["", "## Limitations", "", *(f"- {markdown_text(line)}" for line in limitations(results))]
    settings = json.dumps(setup["settings"], indent=1, ensure_ascii=False)
    fence = "`" * 8  # longer than any run of backticks in a setting worth having
    return "\n".join([*lines, "", "## Settings", "", f"{fence}json", settings, fence, ""])


def setup_facts(results: Results) -> list[tuple[str, str]]:
    """The lines of the set-up as (name, text)."""
    setup = results["setup"]
    model = [setting_text(setting) for setting in setup["model"].values() if setting not in (None, False)]
    facts = [("model", " ".join(model))]
    facts += [(f"data {path}", f"sha256 {digest}") for path, digest in setup["data_files"].items()]
    facts += [(f"records {name}", setting_text(number)) for name, number in (setup["data"] or {}).items()]
    facts += [
        ("budget", ", ".join(f"{unit} {amount:g}" for unit, amount in results["budget"].items())),
        ("learning rate", learning_rate_rule(results)),
        ("seeds", ", ".join(str(seed) for seed in results["seeds"])),
        ("metric", f"{results['metric']['name']}, {count(results['metric']['n'])} items"),
        ("baseline", results["baseline"]),
        ("time of all runs", duration(setup["seconds"])),
        ("tuning, outside the budget", duration(results["tuning"]["seconds"])),
        ("repeatable bit for bit", "yes" if setup["repeatable"] else "no"),
    ]
    facts += [(f"version {name}", setting_text(version)) for name, version in setup["versions"].items()]
    return facts + [(f"hardware {name}", setting_text(fact)) for name, fact in setup["hardware"].items()]


def difference_lines(results: Results) -> list[str]:
    """Each differing setting in one line; first those of which a method's patch is not the only reason."""
    lines = []
    for path, groups, why in grouped_differences(results):
        settings = "; ".join(f"{setting} ({', '.join(labels)})" for setting, labels in groups)
        lines.append(f"{path}: {settings} \N{EM DASH} {why}")
    return lines


def grouped_differences(results: Results) -> list[tuple[str, list[tuple[str, list[str]]], str]]:
    """Every differing setting as (path, [(setting, labels of the methods that have it)], reason)."""
    rows = []
    for difference in sorted(results["differences"], key=lambda difference: difference["why"] == "method"):
        groups: dict[str, list[str]] = {}
        for label, setting in difference["values"].items():
            groups.setdefault(setting_text(setting), []).append(label)
        by_method = difference["why"] == "method"
        why = "the method" if by_method else f"besides the method: {', '.join(difference['writers'])}"
        rows.append((difference["path"], list(groups.items()), why))
    return rows
