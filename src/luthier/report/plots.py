"""Plots as inline SVG whose colours are CSS variables of the page, so that light and dark both read well.

matplotlib knows no CSS variables: it draws with placeholder colours, which `_for_page` replaces.
"""

from __future__ import annotations

import io
import itertools
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
    """The placeholder colour of the index-th method."""
    return f"#0607{index % SERIES:02x}"


def coloured_rows(results: Results) -> list[tuple[int, Mapping[str, Any]]]:
    """Rows of methods of which a run succeeded, each with its index in the plan: a failed run shifts no colour."""
    methods = (row for row in results["rows"] if row["kind"] == "method")
    return [(index, row) for index, row in enumerate(methods) if row["target"]]


def _height(rows: Sequence[Any]) -> float:
    """The height in inches of the plots of scores, which are side by side and must be equal."""
    return max(HEIGHT, 1.2 + 0.42 * len(rows))


def target_plot(results: Results) -> str:
    """Target score of each method with its interval and seeds; the untrained model as a line."""
    rows = coloured_rows(results)
    base = next((row for row in results["rows"] if row["kind"] == "base" and row["target"]), None)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        heights = range(len(rows), 0, -1)  # the first row is the highest
        for height, (index, row) in zip(heights, rows, strict=True):
            score, colour = row["target"], series_colour(index)
            axes.plot([100 * score["low"], 100 * score["high"]], [height] * 2, color=colour, lw=2.2, alpha=0.55)
            if len(score["by_seed"]) > 1:
                seeds = [100 * mean for mean in score["by_seed"]]
                axes.plot(seeds, [height] * len(seeds), "|", color=colour, ms=11, mew=1.2)
            axes.plot(100 * score["mean"], height, _marker(index), color=colour, ms=7.5)
            _write_above(axes, 100 * score["mean"], height, f"{100 * score['mean']:.1f}")
        if base is not None:
            axes.axvline(100 * base["target"]["mean"], color=BASE, ls=(0, (4, 3)), lw=1.4)
            _write_at_foot(axes, 100 * base["target"]["mean"], f"base {100 * base['target']['mean']:.1f}")
        axes.set_yticks(heights, [_short(row["label"]) for _, row in rows])
        axes.margins(x=0.06)
        axes.set_ylim(0.4, len(rows) + 0.75)
        axes.set_xlabel(f"{results['metric']['name']} on held-out items, points")
        _clean(axes, grid="x")

    return _svg(draw, _height(rows), "target")


def forgetting_plot(results: Results) -> str | None:
    """Target score against the share of the base's right items that are still right; up and right is better."""
    rows = coloured_rows(results)
    measured = [(index, row) for index, row in rows if row["retain"] and row["retain"]["kept"] is not None]
    if not measured:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, row in measured:
            kept, score, colour = 100 * row["retain"]["kept"], row["target"], series_colour(index)
            axes.plot([kept, kept], [100 * score["low"], 100 * score["high"]], color=colour, lw=1.6, alpha=0.45)
            axes.plot(kept, 100 * score["mean"], _marker(index), color=colour, ms=9)
        axes.margins(x=0.15, y=0.1)
        axes.set_xlabel("kept: % of the base's right retain items still right")
        axes.set_ylabel("target, points")
        _clean(axes, grid="both")

    return _svg(draw, _height(rows), "forgetting")


def curve_plot(results: Results, key: str, title: str) -> str | None:
    """A training curve of every method against progress: the mean over seeds, and each seed faintly."""
    rows = [(index, row["label"]) for index, row in coloured_rows(results)]
    curves = {}
    for _, label in rows:
        curves[label] = [run for run in results["curves"].get(label, []) if _has_curve(run, key)]
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
        heights = range(len(rows), 0, -1)
        all_axes = figure.subplots(1, len(panels), sharey=True)
        for axes, (title, key, scale, form) in zip(all_axes, panels, strict=True):
            for height, (index, row) in zip(heights, rows, strict=True):
                cost = scale * (row["cost"][key] or 0)
                axes.barh(height, cost, height=0.62, color=series_colour(index), alpha=0.85)
                estimate = scale * (row["cost"]["estimated_memory_bytes"] or 0) if key == "peak_memory_bytes" else 0
                if estimate:
                    axes.plot([estimate] * 2, [height - 0.4, height + 0.4], color=INK, lw=1.4)
                end = (max(cost, estimate), height)
                axes.annotate(format(cost, form), end, (5, 0), textcoords="offset points", va="center")
            axes.set_title(title, loc="left", color=QUIET)
            axes.margins(x=0.3)
            axes.set_xlim(left=0)
            axes.set_xticks([])
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
    items = range(len(table["items"]))
    order = sorted(items, key=lambda index: [-arms[labels[0]][index], *_hardness(arms, index)])
    methods = {row["label"]: index for index, row in coloured_rows(results)}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        heights = range(len(labels), 0, -1)
        for height, label in zip(heights, labels, strict=True):
            colour = series_colour(methods[label]) if label in methods else BASE
            for start, length, score in _equal_neighbours([arms[label][index] for index in order]):
                if score > 0:
                    alpha = 0.15 + 0.85 * score
                    axes.broken_barh([(start, length)], (height - 0.4, 0.8), color=colour, alpha=alpha, lw=0)
        axes.set_yticks(heights, [_short(label) for label in labels])
        axes.set_xlim(0, len(order))
        axes.set_ylim(0.4, len(labels) + 0.6)
        axes.set_xlabel(f"the {len(order)} held-out items, in the same order for every row")
        _clean(axes)

    return _svg(draw, 0.8 + 0.3 * len(labels), "items", width=2 * WIDTH)


def _hardness(arms: Mapping[str, Sequence[float]], index: int) -> list[float]:
    """The sort key of an item, by how many models are right on it and which."""
    scores = [of_arm[index] for of_arm in arms.values()]
    return [-fmean(scores), *(-score for score in scores)]


def _item_means(runs: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(column) for column in zip(*runs, strict=True)]


def _equal_neighbours(scores: Sequence[float]) -> list[tuple[int, int, float]]:
    """(start, length, score) of each run of equal neighbours: far fewer shapes in the SVG than items."""
    start, bars = 0, []
    for score, neighbours in itertools.groupby(scores):
        length = len(list(neighbours))
        bars.append((start, length, score))
        start += length
    return bars


def _has_curve(run: Mapping[str, Any], key: str) -> bool:
    return any(number is not None for number in run[key])


def _points(run: Mapping[str, Any], key: str) -> tuple[list[float], list[float]]:
    pairs = [(100 * x, y) for x, y in zip(run["progress"], run[key], strict=True) if x is not None and y is not None]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _mean_curve(runs: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """The mean of runs point by point."""
    curves = [_points(run, key) for run in runs]
    # Under a budget in seconds the runs have different numbers of updates: the longer ones are thinned out.
    shortest = min(len(xs) for xs, _ in curves)
    mean_xs, mean_ys = [], []
    for step in range(shortest):
        points = []
        for xs, ys in curves:
            index = round(step * (len(xs) - 1) / max(1, shortest - 1))
            points.append((xs[index], ys[index]))
        mean_xs.append(fmean(x for x, _ in points))
        mean_ys.append(fmean(y for _, y in points))
    return mean_xs, mean_ys


def _marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…"


def _write_above(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), (0, 6), textcoords="offset points", ha="center", va="bottom", color=INK)


def _write_at_foot(axes: Axes, x: float, text: str) -> None:
    """Text at the foot of a vertical line, on the side that has more room."""
    low, high = axes.get_xlim()
    right = x < (low + high) / 2
    shift, side = (4, "left") if right else (-4, "right")
    axes.annotate(
        text, (x, 0), (shift, 3), xycoords=("data", "axes fraction"), textcoords="offset points", ha=side, color=QUIET
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
        # The date would make two reports of the same results differ.
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(buffer, metadata=no_metadata)
    return _for_page(buffer.getvalue())


def _for_page(svg: str) -> str:
    """The SVG element without XML header, fixed size and ids; its font and colours are the page's."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--font)", svg)
    # matplotlib numbers the ids of every figure from 1, and a page must have each id once.
    svg = re.sub(r'id="(?:figure|axes|patch|text|line2d|matplotlib|xtick|ytick|PolyCollection)[^"]*"', "", svg)
    for placeholder, variable in VARIABLES.items():
        svg = svg.replace(placeholder, f"var({variable})")
    return re.sub(r"#0607(\d\d)", r"var(--series-\1)", svg)
