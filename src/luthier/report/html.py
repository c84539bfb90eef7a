"""The report as one HTML file: it makes no request, plots are inline SVG, light or dark follows the reader."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from luthier.report import plots
from luthier.report.numbers import NONE, count, duration, html_name, html_text, percent, points, rate, setting_text
from luthier.report.sentences import (
    Results,
    findings,
    headline,
    limitations,
    listed,
    methods_of,
    notes,
    speaks_of_methods,
)
from luthier.report.side_by_side import gallery, is_drawn, sample_block
from luthier.report.table import TableCell, build_table
from luthier.report.text_formats import grouped_differences, setup_facts

CSS = Path(__file__).with_name("page.css")
OPEN_SAMPLES = 6
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What a browser may load or run for the page: nothing but its own styles and pictures, whatever a text smuggles in."""


def to_html(results: Results) -> str:
    """The page of a results.json, with everything that it shows inside it."""
    sections = (
        _head(results),
        _table(results),
        _alerts(results),
        _plots(results),
        _items(results),
        _samples(results),
        _details(results),
        _differs(results),
        _tuning(results),
        _setup(results),
        _limits(results),
    )
    title = html_text(f"{results['name']} · comparison")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{title}</title><style>\n{CSS.read_text(encoding='utf-8')}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n<footer>Made by Luthier from results.json beside this file.</footer></main></body></html>\n"
    )


def colours(results: Results) -> dict[str, str]:
    """The CSS colour of every row, the same in plots, keys and samples."""
    rows = plots.coloured_rows(results)
    return {row["label"]: f"var(--series-{index % plots.SERIES:02x})" for index, row in rows}


def _head(results: Results) -> str:
    model = results["setup"]["model"].get("path", "")
    seeds = len(results["seeds"])
    budget = ", ".join(f"{amount:g} {unit}" for unit, amount in results["budget"].items())
    facts = [
        f"model {model}",
        f"{count(results['metric']['n'])} held-out items",
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}",
        f"budget {budget}",
        f"runs took {duration(results['setup']['seconds'])}",
    ]
    sentences = "".join(f"<li>{html_text(line)}</li>" for line in findings(results))
    spans = "".join(f"<span>{html_text(fact)}</span>" for fact in facts)
    return (
        f'<p class="eyebrow">Luthier comparison</p><h1>{html_text(results["name"])}</h1><p class="facts">{spans}</p>'
        f'<div class="headline"><p class="lead">{html_text(headline(results))}</p><ul>{sentences}</ul></div>'
    )


def _table(results: Results) -> str:
    table = build_table(results)
    colour = colours(results)
    titles = "".join(f"<th>{html_text(title)}</th>" for title in table.titles)
    rows = []
    for row in table.rows:
        first, *others = row
        swatch = f'<span class="swatch" style="--colour: {colour.get(first.text, "var(--base)")}"></span>'
        detail = f"<small>{html_text(first.detail)}</small>" if first.detail else ""
        name = f'<td class="{first.tone}">{swatch} <b>{html_name(first.text)}</b>{detail}</td>'
        rows.append(f"<tr>{name}{''.join(_cell(cell) for cell in others)}</tr>")
    below = "".join(f"<li>{html_text(line)}</li>" for line in notes(results))
    return (
        f'<div class="card"><div class="scroll"><table><thead><tr>{titles}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><ul class="notes">{below}</ul></div>'
    )


def _cell(cell: TableCell) -> str:
    detail = f"<small>{html_text(cell.detail)}</small>" if cell.detail else ""
    return f'<td class="{cell.tone}"><b>{html_text(cell.text)}</b>{detail}</td>'


def _alerts(results: Results) -> str:
    alerts = [f'<div class="alert"><p>{html_text(line)}</p></div>' for line in results["warnings"]]
    for failure in results["failures"]:
        log_text = "\n".join(failure["log"])
        log = f"<details><summary>last lines of its log</summary><pre>{html_text(log_text)}</pre></details>"
        alerts.append(
            f'<div class="alert failure"><p><b>{html_text(failure["folder"])}</b>: {html_text(failure["status"])}. '
            f"{html_text(failure['error'] or 'It did not run.')}</p>{log if failure['log'] else ''}</div>"
        )
    return f"<h2>Warnings and failures</h2>{''.join(alerts)}" if alerts else ""


def _plots(results: Results) -> str:
    if not methods_of(results):
        return ""
    key = ""
    for label, colour in colours(results).items():
        key += f'<li><span class="swatch" style="--colour: {colour}"></span>{html_text(label)}</li>'
    base = next((row["target"] for row in results["rows"] if row["kind"] == "base" and row["target"]), None)
    untrained = f"; untrained: 100% and {points(base['mean'])}." if base else "."
    ticks = "; ticks: seeds." if speaks_of_methods(results) else "."
    own = "Each method's own objective: compare shapes, not heights."
    cards = (
        ("Target score", f"Dot: mean; bar: 95% interval{ticks}", plots.target_plot(results)),
        ("Target against what is kept", f"Up and right is better{untrained}", plots.forgetting_plot(results)),
        (
            "Negative log-likelihood in training",
            "Per target token; shown, never ranked.",
            plots.curve_plot(results, "nll", "nll per target token"),
        ),
        ("Loss in training", own, plots.curve_plot(results, "loss", "loss")),
    )
    grid = "".join(_plot_card(*card) for card in cards)
    cost = "Means over runs, of peak memory the highest; tick: memory estimated beforehand."
    grid += _plot_card("Cost", cost, plots.cost_plot(results), wide=True)
    return f'<h2>Plots</h2><ul class="key">{key}</ul><div class="grid">{grid}</div>'


def _plot_card(title: str, hint: str, svg: str | None, wide: bool = False) -> str:
    if svg is None:
        return ""
    return f'<div class="card{" wide" if wide else ""}"><h3>{title}</h3><p>{hint}</p>{svg}</div>'


def _items(results: Results) -> str:
    svg = plots.items_plot(results)
    if svg is None:
        return ""
    return (
        "<h2>Item by item</h2>"
        + _plot_card(
            "Which items each gets right",
            "One column per item: filled where right, paler where some seeds or part of the points are.",
            svg,
            wide=True,
        )
        + _agreement(results)
    )


def _agreement(results: Results) -> str:
    """For each pair of rows the share of items on which both are right or both are not."""
    arms = {}
    for label, runs in results["scores"][0]["scores"].items():
        arms[label] = [fmean(column) >= 0.5 for column in zip(*runs, strict=True)]
    if len(arms) < 3:  # of two rows the plot above shows as much
        return ""
    titles = "".join(f"<th>{html_name(label)}</th>" for label in arms)
    rows = []
    for label, ours in arms.items():
        cells = ""
        for theirs in arms.values():
            agreement = fmean(a == b for a, b in zip(ours, theirs, strict=True))
            cells += f"<td>{percent(agreement)}</td>"
        rows.append(f"<tr><td>{html_name(label)}</td>{cells}</tr>")
    return (
        '<div class="card below"><h3>Agreement</h3><p>Share of items on which both are right, or both are not (right: '
        'at least half of the points).</p><div class="scroll"><table class="pairs">'
        f"<thead><tr><th></th>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _samples(results: Results) -> str:
    # Pictures are compared in one table, texts one below the other.
    pictures = [sample for sample in results["samples"] if is_drawn(sample)]
    texts = [sample for sample in results["samples"] if not is_drawn(sample)]
    return _gallery(pictures, results) + _answers(texts, results)


def _gallery(samples: Sequence[Mapping[str, Any]], results: Results) -> str:
    if not samples:
        return ""
    return (
        '<h2>Samples side by side</h2><p class="hint">Each column is a held-out record: what was asked, the record '
        "itself, and what each model draws for it, all from the same noise. Below: the score.</p>"
        f'<div class="card"><div class="scroll">{gallery(samples, colours(results))}</div></div>'
    )


def _answers(samples: Sequence[Mapping[str, Any]], results: Results) -> str:
    blocks = [sample_block(sample, colours(results)) for sample in samples]
    if not blocks:
        return ""
    rest = blocks[OPEN_SAMPLES:]  # folded in: sixteen answers of every method hide the sections below
    more = f"<details><summary>{len(rest)} more</summary>{''.join(rest)}</details>" if rest else ""
    return (
        '<h2>Answers side by side</h2><p class="hint">Items on which the models disagree come first, so this is no '
        "fair sample of how often each is right. Marked: what differs from the reference.</p>"
        f"{''.join(blocks[:OPEN_SAMPLES])}{more}"
    )


def _details(results: Results) -> str:
    """Numbers that never rank methods: perplexity, seeds, data used, times."""
    further = list(dict.fromkeys(name for row in results["rows"] for name in row.get("further", {})))
    has_perplexity = any(row["perplexity"] is not None for row in results["rows"]) or not further
    titles = ("method", "each seed", "validation", *(("perplexity",) if has_perplexity else ()), *further)
    counted = ("records", "tokens") if results.get("counts", "tokens") == "tokens" else ("records",)
    titles += (*counted, "trained weights", "evaluation")
    rows = []
    for row in (row for row in results["rows"] if row["target"]):
        cost = row["cost"] or {}
        evaluated = cost.get("evaluate_seconds")
        cells = [row["label"], ", ".join(points(mean) for mean in row["target"]["by_seed"]), points(row["validation"])]
        if has_perplexity:
            cells.append(NONE if row["perplexity"] is None else f"{row['perplexity']:.2f}")
        cells += [f"{row['further'][name]:.3g}" if name in row["further"] else NONE for name in further]
        cells += [count(cost.get(name)) for name in counted]
        cells += [count(cost.get("trainable_parameters")), NONE if evaluated is None else duration(evaluated)]
        rows.append(f"<tr>{''.join(f'<td>{html_name(cell)}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{html_text(title)}</th>" for title in titles)
    return (
        '<h2>More numbers</h2><div class="card"><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        f'<ul class="notes"><li>{_unranked(further)}</li></ul></div>'
    )


def _unranked(further: Sequence[str]) -> str:
    if further:
        return f"{html_text(listed(further).capitalize())}: shown, and never ranks methods."
    return "Perplexity of the reference answers is shown and never ranks methods."


def _differs(results: Results) -> str:
    rows = []
    for path, groups, why in grouped_differences(results):
        settings = ""
        for setting, labels in groups:
            settings += f"<div><b>{html_name(setting)}</b> <span>{html_name(', '.join(labels))}</span></div>"
        tone = "" if why == "the method" else ' class="tag partly"'
        reason = f"<span{tone}>{html_text(why)}</span>"
        rows.append(f"<tr><td>{html_name(path)}</td><td>{settings}</td><td>{reason}</td></tr>")
    if not rows:
        return ""
    return (
        '<h2>What differs between the methods</h2><div class="card"><p class="hint">All other settings are the same. '
        "Lines marked “besides the method” are a second reason why results may differ.</p>"
        '<div class="scroll"><table class="differs"><thead><tr><th>setting</th><th>values</th><th>because of</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div></div>"
    )


def _tuning(results: Results) -> str:
    runs = results["tuning"]["runs"]
    if not runs:
        return ""
    rows = []
    for run in runs:
        values = ", ".join(f"{path.rsplit('.', 1)[-1]} {_tuned(setting)}" for path, setting in run["values"].items())
        mark = '<span class="tag right">used</span>' if run["chosen"] else ""
        seed, score, spent = str(run["seed"]), points(run["validation"]), duration(run["seconds"])
        cells = (run["label"], values, seed, score, run["status"], spent)
        rows.append(f"<tr>{''.join(f'<td>{html_name(cell)}</td>' for cell in cells)}<td>{mark}</td></tr>")
    titles = "".join(f"<th>{name}</th>" for name in ("method", "values", "seed", "validation", "status", "time", ""))
    return (
        f'<h2>Tuning, outside the budget</h2><div class="card"><p class="hint">{len(runs)} runs, '
        f"{duration(results['tuning']['seconds'])} in all, scored on validation only.</p>"
        f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></div>'
    )


def _tuned(setting: Any) -> str:
    return rate(setting) if isinstance(setting, float) else setting_text(setting)


def _setup(results: Results) -> str:
    rows = ""
    for name, fact in setup_facts(results):
        rows += f"<tr><td>{html_text(name)}</td><td>{html_text(fact)}</td></tr>"
    settings = html_text(json.dumps(results["setup"]["settings"], indent=1, ensure_ascii=False))
    return (
        f'<h2>Set-up</h2><div class="card"><div class="scroll"><table class="setup"><tbody>{rows}</tbody></table></div>'
        f'<details><summary>every setting</summary><div class="box"><pre>{settings}</pre></div></details></div>'
    )


def _limits(results: Results) -> str:
    lines = "".join(f"<li>{html_text(line)}</li>" for line in limitations(results))
    return f'<h2>What this cannot tell</h2><div class="card"><ul class="plain">{lines}</ul></div>'
