"""A/A: how often are two equal methods called different? At most about 5% is what a table promises.

    python bench/aa.py                        # simulated, about two minutes
    python bench/aa.py --real                 # sft against itself through the engine: 12 runs of nano
    python bench/aa.py --real recipe.yaml     # the same on any recipe

Simulated: N items with difficulties of their own; every run has its own shift of skill (seed effect) and its own
luck on each item. Two arms of S runs differ in nothing. Beside the rule of `luthier.stats` stands a paired
bootstrap over items alone, which takes two lucky runs for two methods.

Real: one method at many seeds through `luthier compare`; arms are disjoint draws of three runs. The draws
share runs, so their number says less than as many independent repetitions would.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist, fmean, stdev, variance

import result

from luthier import stats

LEVEL = 0.05
NANO = {
    "name": "aa",
    "model": "nano",
    "data": {
        "train": {"kind": "strings", "count": 480, "longest": 12, "tasks": ["sort", "reverse"]},
        "test": "40%",
        "max_tokens": 128,
    },
    "train": {"optimizer": {"kind": "adamw", "lr": 1e-3}},
    "budget": {"epochs": 2},
    "evaluate": {"metric": "exact"},
    "generate": {"max_new_tokens": 24},
}
SETTINGS = [
    # items, spread of item difficulty, spread of a run's skill, share of luck on one item
    (60, 2.0, 0.0, 1.0),
    (60, 2.0, 0.2, 1.0),
    (300, 2.0, 0.0, 1.0),
    (300, 2.0, 0.1, 1.0),
    (300, 2.0, 0.3, 1.0),
    (300, 3.0, 0.1, 0.3),
    (1319, 2.0, 0.0, 1.0),
    (1319, 2.0, 0.1, 1.0),
    (1319, 3.0, 0.2, 0.3),
]


def arms(
    draw: random.Random, items: int, difficulty: float, skill: float, luck: float, seeds: int, number: int
) -> list:
    """`number` arms of one method, `[number][S][N]`; with luck below 1, runs of one skill tend to agree on an item."""
    hardness = [draw.gauss(-1.0, difficulty) for _ in range(items)]
    fate = [draw.random() for _ in range(items)]

    def run() -> list[float]:
        shift = draw.gauss(0.0, skill)
        chances = [1 / (1 + math.exp(hard - shift)) for hard in hardness]
        rolls = [draw.random() if draw.random() < luck else own for own in fate]
        return [float(roll < chance) for roll, chance in zip(rolls, chances, strict=True)]

    return [[run() for _ in range(seeds)] for _ in range(number)]


def items_only(baseline: list, other: list) -> float:
    """The p of a paired test over items alone (the limit of a bootstrap): what the rule replaces."""
    changes = [b - a for a, b in zip(stats.item_means(baseline), stats.item_means(other), strict=True)]
    spread = math.sqrt(variance(changes) / len(changes))
    return 1.0 if spread == 0 else 2 * (1 - NormalDist().cdf(abs(fmean(changes)) / spread))


def simulate(repetitions: int, seeds: int, methods: int) -> dict:
    print(f"A/A, {repetitions} repetitions, {seeds} seeds: how often a difference is called at {LEVEL}")
    titles = ("items", "difficulty", "skill sd", "luck", "run sd", "rule", f"Holm of {methods}", "items only")
    print(" ".join(f"{title:>10}" for title in titles))
    lines = []
    for items, difficulty, skill, luck in SETTINGS:
        draw = random.Random(f"{items} {difficulty} {skill} {luck}")
        called, spread = [0, 0, 0], []
        for _ in range(repetitions):
            baseline, *others = arms(draw, items, difficulty, skill, luck, seeds, methods + 1)
            p_values = [stats.difference(baseline, other).p for other in others]
            found = (p_values[0], min(stats.holm(p_values)), items_only(baseline, others[0]))
            called = [count + (p < LEVEL) for count, p in zip(called, found, strict=True)]
            spread.append(stdev(fmean(run) for run in baseline))
        shares = [f"{count / repetitions:.1%}" for count in called]
        cells = (items, difficulty, skill, luck, f"{100 * fmean(spread):.1f}", *shares)
        print(" ".join(f"{cell:>10}" for cell in cells), flush=True)
        lines.append(dict(zip(titles, cells, strict=True)))
    return {"repetitions": repetitions, "seeds": seeds, "level": LEVEL, "simulated": lines}


def real(recipe: Path | str | dict, method: str, runs: int, seeds: int, draws: int, folder: Path | None) -> dict:
    from luthier.compare import compare

    report = compare(recipe, [method], list(range(runs)), folder)
    table = json.loads((report.parent / "results.json").read_text(encoding="utf-8"))["scores"][0]
    scores = table["scores"][method]
    found = [stats.difference(first, second) for first, second in splits(scores, seeds, draws)]
    called = sum(one.p < LEVEL for one in found)
    spread = stdev(100 * fmean(run) for run in scores)
    print(f"\n{method} against itself: {len(scores)} runs, {len(table['items'])} items, sd of runs {spread:.1f} points")
    print(f"{called} of {len(found)} draws of {seeds} against {seeds} call a difference: {called / len(found):.1%}")
    facts = {"method": method, "runs": len(scores), "items": len(table["items"]), "sd_of_runs_in_points": spread}
    return facts | {"seeds": seeds, "level": LEVEL, "draws": len(found), "called": called}


def splits(scores: list, seeds: int, draws: int) -> Iterator[tuple[list, list]]:
    draw = random.Random(0)
    for _ in range(draws):
        chosen = draw.sample(scores, 2 * seeds)
        yield chosen[:seeds], chosen[seeds:]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", type=int, default=3, help="methods beside the baseline, for Holm")
    parser.add_argument("--real", nargs="?", const=NANO, metavar="RECIPE", help="run this recipe instead of simulating")
    parser.add_argument("--method", default="sft")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="of a real A/A to go on with")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.real is not None:
        found = real(given.real, given.method, given.runs, given.seeds, given.draws, given.folder)
        result.write("aa_real", found, given.output)
    else:
        result.write("aa", simulate(given.repetitions, given.seeds, given.methods), given.output)


if __name__ == "__main__":
    main()
