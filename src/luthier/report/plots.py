"""Plots as inline SVG that takes its colours from the page, so that light and dark both read well.

matplotlib draws with stand-in colours; they are replaced by CSS variables of page.css.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from luthier.report.sentences import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, RULE, PAPER, BASE = "#010203", "#020304", "#030405", "#040506", "#050607"
VARIABLES = {INK: "--ink", QUIET: "--quiet", RULE: "--rule", PAPER: "--card", BASE: "--base"}
SERIES = 8
MARKERS = "osD^vPXh"
WIDTH = 5.6  # inches; the page scales it to its column
HEIGHT = 3.2
LONGEST_LABEL = 26


def series_colour(index: int) -> str:
    """The stand-in colour of the index-th method."""
    return f"#0607{index % SERIES:02x}"


def coloured_rows(results: Results) -> list[tuple[int, Mapping[str, Any]]]:
    """Rows of methods that have a result, each with its place in the plan: a failed run shifts no colour."""
    methods = (row for row in results["rows"] if row["kind"] == "method")
    return [(index, row) for index, row in enumerate(methods) if row["target"]]


def _height(rows: Sequence[Any]) -> float:
    """The two plots that stand side by side share it."""
    return max(HEIGHT, 1.2 + 0.42 * len(rows))


def target_plot(results: Results) -> str:
    """Target score of each method with its interval and seeds; the untrained model as a line."""
    rows = coloured_rows(results)
    base = next((row for row in results["rows"] if row["kind"] == "base" and row["target"]), None)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, (index, row) in enumerate(rows):
            found, colour, height = row["target"], series_colour(index), len(rows) - place
            axes.plot([100 * found["low"], 100 * found["high"]], [height] * 2, color=colour, lw=2.2, alpha=0.55)
            if len(found["by_seed"]) > 1:
                seeds = [100 * mean for mean in found["by_seed"]]
                axes.plot(seeds, [height] * len(seeds), "|", color=colour, ms=11, mew=1.2)
            axes.plot(100 * found["mean"], height, _marker(index), color=colour, ms=7.5)
            _value(axes, 100 * found["mean"], height, f"{100 * found['mean']:.1f}")
        if base is not None:
            axes.axvline(100 * base["target"]["mean"], color=BASE, ls=(0, (4, 3)), lw=1.4)
            _say(axes, 100 * base["target"]["mean"], f"base {100 * base['target']['mean']:.1f}")
        axes.set_yticks([len(rows) - place for place in range(len(rows))], [_short(row["label"]) for _, row in rows])
        axes.margins(x=0.06)
        axes.set_ylim(0.4, len(rows) + 0.75)
        axes.set_xlabel(f"{results['metric']['name']} on held-out items, points")
        _clean(axes, grid="x")

    return _svg(draw, _height(rows), "target")


def forgetting_plot(results: Results) -> str | None:
    """Target score against what is kept of the base's right items; up and right is better."""
    rows = coloured_rows(results)
    shown = [(index, row) for index, row in rows if row["retain"] and row["retain"]["kept"] is not None]
    if not shown:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, row in shown:
            x, y, found = 100 * row["retain"]["kept"], 100 * row["target"]["mean"], row["target"]
            colour = series_colour(index)
            axes.plot([x, x], [100 * found["low"], 100 * found["high"]], color=colour, lw=1.6, alpha=0.45)
            axes.plot(x, y, _marker(index), color=colour, ms=9)
        axes.margins(x=0.15, y=0.1)
        axes.set_xlabel("kept: % of the base's right retain items still right")
        axes.set_ylabel("target, points")
        _clean(axes, grid="both")

    return _svg(draw, _height(rows), "forgetting")


def curve_plot(results: Results, key: str, title: str) -> str | None:
    """A training curve of every method against progress: the mean over seeds, and each seed faintly."""
    rows = [(index, row["label"]) for index, row in coloured_rows(results)]
    curves = {label: [run for run in results["curves"].get(label, []) if _drawable(run, key)] for _, label in rows}
    if not any(curves.values()):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, label in rows:
            runs = curves[label]
            if len(runs) > 1:
                for run in runs:
                    axes.plot(*_points(run, key), color=series_colour(index), lw=0.8, alpha=0.3)
            if runs:
                axes.plot(*_mean_curve(runs, key), color=series_colour(index), lw=1.9)
        axes.set_xlim(0, 100)
        axes.set_xlabel("progress, % of the budget")
        axes.set_ylabel(title)
        _clean(axes, grid="both")

    return _svg(draw, HEIGHT, f"curve-{key}")


def cost_plot(results: Results) -> str | None:
    """Speed, memory and time of each method as bars; the memory estimate as a tick."""
    rows = [(index, row) for index, row in coloured_rows(results) if row["cost"]]
    panels: list[tuple[str, str, float, str]] = [
        (f"{results.get('counts', 'tokens')} / s", "tokens_per_second", 1, ",.0f"),
        ("peak memory, GB", "peak_memory_bytes", 1e-9, ".2f"),
        ("training, minutes", "train_seconds", 1 / 60, ".1f"),
    ]
    if not rows:
        return None

    def draw(figure: Figure) -> None:
        all_axes = figure.subplots(1, len(panels), sharey=True)
        for axes, (title, key, scale, form) in zip(all_axes, panels, strict=True):
            for place, (index, row) in enumerate(rows):
                value, height = scale * (row["cost"][key] or 0), len(rows) - place
                axes.barh(height, value, height=0.62, color=series_colour(index), alpha=0.85)
                estimate = scale * (row["cost"]["estimated_memory_bytes"] or 0) if key == "peak_memory_bytes" else 0
                if estimate:
                    axes.plot([estimate] * 2, [height - 0.4, height + 0.4], color=INK, lw=1.4)
                end = (max(value, estimate), height)
                axes.annotate(format(value, form), end, (5, 0), textcoords="offset points", va="center")
            axes.set_title(title, loc="left", color=QUIET)
            axes.margins(x=0.3)
            axes.set_xlim(left=0)
            axes.set_xticks([])
            heights = [len(rows) - place for place in range(len(rows))]
            axes.set_yticks(heights, [_short(row["label"]) for _, row in rows])
            _clean(axes)
            axes.spines["bottom"].set_visible(False)

    return _svg(draw, 0.7 + 0.36 * len(rows), "cost", width=2 * WIDTH)


def items_plot(results: Results) -> str | None:
    """One column per item and one row per model: filled where right, ordered by how many are right."""
    table = results["scores"][0] if results["scores"] else {"items": [], "scores": {}}
    arms = {label: _item_means(runs) for label, runs in table["scores"].items()}
    if not table["items"] or len(arms) < 2:
        return None
    labels = list(arms)
    order = sorted(range(len(table["items"])), key=lambda item: [-arms[labels[0]][item], *_hardness(arms, item)])
    methods = {row["label"]: index for index, row in coloured_rows(results)}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, label in enumerate(labels):
            colour = series_colour(methods[label]) if label in methods else BASE
            height = len(labels) - place
            for start, length, value in _stretches([arms[label][item] for item in order]):
                if value > 0:
                    span, rows = [(start, length)], (height - 0.4, 0.8)
                    axes.broken_barh(span, rows, color=colour, alpha=0.15 + 0.85 * value, lw=0)
        axes.set_yticks([len(labels) - place for place in range(len(labels))], [_short(label) for label in labels])
        axes.set_xlim(0, len(order))
        axes.set_ylim(0.4, len(labels) + 0.6)
        axes.set_xlabel(f"the {len(order)} held-out items, in the same order for every row")
        _clean(axes)

    return _svg(draw, 0.8 + 0.3 * len(labels), "items", width=2 * WIDTH)


def _hardness(arms: Mapping[str, Sequence[float]], item: int) -> list[float]:
    values = [scores[item] for scores in arms.values()]
    return [-fmean(values), *(-value for value in values)]


def _item_means(runs: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(column) for column in zip(*runs, strict=True)]


def _stretches(values: Sequence[float]) -> list[tuple[int, int, float]]:
    """(start, length, value) of each run of equal neighbours: far fewer shapes than items."""
    found: list[tuple[int, int, float]] = []
    for place, value in enumerate(values):
        if found and found[-1][2] == value:
            found[-1] = (found[-1][0], found[-1][1] + 1, value)
        else:
            found.append((place, 1, value))
    return found


def _drawable(run: Mapping[str, Any], key: str) -> bool:
    return any(value is not None for value in run[key])


def _points(run: Mapping[str, Any], key: str) -> tuple[list[float], list[float]]:
    pairs = [(100 * x, y) for x, y in zip(run["progress"], run[key], strict=True) if x is not None and y is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _mean_curve(runs: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """The mean of runs point by point (they have as many updates each, but for a budget in seconds)."""
    drawn = [_points(run, key) for run in runs]
    shortest = min(len(xs) for xs, _ in drawn)
    places = [[round(step * (len(xs) - 1) / max(1, shortest - 1)) for step in range(shortest)] for xs, _ in drawn]
    mean = [
        [fmean(curve[axis][at[step]] for curve, at in zip(drawn, places, strict=True)) for step in range(shortest)]
        for axis in (0, 1)
    ]
    return mean[0], mean[1]


def _marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def _value(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), (0, 6), textcoords="offset points", ha="center", va="bottom", color=INK)


def _say(axes: Axes, x: float, text: str) -> None:
    """A word at the foot of a vertical line, on the side where there is room."""
    low, high = axes.get_xlim()
    right = x < (low + high) / 2
    place, side = (4, "left") if right else (-4, "right")
    axes.annotate(
        text, (x, 0), (place, 3), xycoords=("data", "axes fraction"), textcoords="offset points", ha=side, color=QUIET
    )


def _clean(axes: Axes, grid: str | None = None) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    if grid is not None:
        axes.grid(axis=grid, color=RULE, lw=0.8)  # type: ignore[arg-type]
        axes.set_axisbelow(True)


def _svg(draw: Callable[[Figure], None], height: float, name: str, width: float = WIDTH) -> str:
    """Draw into an SVG element that scales with its column and uses the page's font and colours."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.labelcolor": QUIET,
        "axes.edgecolor": RULE,
        "xtick.color": QUIET,
        "ytick.color": INK,
        "text.color": INK,
    }
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.patch.set_visible(False)
        for axes in figure.axes:
            axes.patch.set_visible(False)
        buffer = io.StringIO()
        without = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=without)
    return _for_page(buffer.getvalue())


def _for_page(svg: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--font)", svg)
    svg = re.sub(r'id="(?:figure|axes|patch|text|line2d|matplotlib|xtick|ytick|PolyCollection)[^"]*"', "", svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return re.sub(r"#0607(\d\d)", r"var(--series-\1)", svg)
