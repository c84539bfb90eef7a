"""The plan of a comparison: methods × seeds × axes under one budget, as a list of tasks. Nothing runs here."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.errors import RecipeError, nearest
from luthier.recipe import Recipe, load_recipe, method_label
from luthier.recipe.fingerprint import digest, evaluated_blocks, file_digest, task_fingerprint
from luthier.recipe.modality import MODALITIES, modality_of

BASE = "base"
LEARNING_RATE = "train.optimizer.lr"


@dataclass(frozen=True)
class Task:
    """One process: train and evaluate one method at one seed, or evaluate the base model.

    `folder` is relative to the comparison's. `sets` names what is evaluated: a tuning run must not see the
    held-out target items. Two tasks with one `fingerprint` compute the same. `methods` are the recipes that an
    evaluation of the base tries on the data, so that a method that does not fit is refused before any training.
    """

    folder: str
    do: Literal["train", "evaluate"]
    cell: str
    method: str
    seed: int
    sets: tuple[str, ...]
    recipe: Mapping[str, Any]
    fingerprint: str
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self, shared: Path) -> dict[str, Any]:
        """What the worker reads as task.json."""
        return {
            "do": self.do,
            "method": self.method,
            "seed": self.seed,
            "sets": list(self.sets),
            "shared": str(shared),
            "fingerprint": self.fingerprint,
            "recipe": self.recipe,
            "methods": dict(self.methods),
        }


@dataclass(frozen=True)
class Cell:
    """One row of the table: a method at one combination of axis values. `folder` is safe as a path."""

    label: str
    folder: str
    method: str
    patch: str  # what the user wrote: `dft+dora`, `./mine.py`
    axes: Mapping[str, Any]
    overrides: tuple[str, ...]
    settings: Mapping[str, Any]
    origins: Mapping[str, str]
    base: str  # folder of the base evaluation it is read against

    @property
    def learning_rate(self) -> float | None:
        """What the recipe alone would train with, before tuning."""
        return learning_rate(self.settings)


@dataclass(frozen=True)
class RecipeSource:
    """A recipe as it is loaded for every method and axis value, each of them once."""

    recipe: Any
    overrides: tuple[str, ...]
    base: Path | None
    loaded: dict[tuple[tuple[str, ...], ...], Recipe] = field(default_factory=dict, compare=False, repr=False)

    def load(self, methods: Sequence[str] = (), extra: Sequence[str] = ()) -> Recipe:
        """The resolved recipe; an override in `extra` takes the place of the user's for the same key."""
        key = (tuple(methods), tuple(extra))
        if key not in self.loaded:
            self.loaded[key] = self._load(methods, extra)
        return self.loaded[key]

    def at_seed(self, seed: int, methods: Sequence[str], extra: Sequence[str]) -> Recipe:
        """The resolved recipe with this seed; it is loaded once whatever the number of seeds."""
        return self.load(methods, [*extra, "seed=0"]).with_seed(seed)

    def _load(self, methods: Sequence[str], extra: Sequence[str]) -> Recipe:
        paths = [text.partition("=")[0] for text in extra]
        kept = [
            text
            for text in self.overrides
            if not any(f"{text.partition('=')[0].strip()}.".startswith(f"{path}.") for path in paths)
        ]
        return load_recipe(self.recipe, list(methods), [*kept, *extra], self.base)


@dataclass(frozen=True)
class Plan:
    """Everything a comparison will do, known before anything runs except which tuned values win."""

    name: str
    source: RecipeSource
    settings: Mapping[str, Any]
    cells: tuple[Cell, ...]
    baseline: str
    seeds: tuple[int, ...]
    rule: Literal["same", "advice", "tune"]
    candidates: tuple[Mapping[str, Any], ...]  # values tried by `tune`; empty otherwise
    bases: tuple[Task, ...]
    tuning: tuple[tuple[str, int, Task], ...]  # cell's folder, index into candidates, task
    data_files: Mapping[str, str] = field(default_factory=dict)  # path: sha256

    def runs(self, chosen: Mapping[str, int]) -> list[Task]:
        """The runs of the table, seed by seed, so that a comparison cut short is still one.

        Args:
            chosen: cell's folder → index of the winning candidate; a tuned cell without one is left out.
        """
        ready = [cell for cell in self.cells if not self.candidates or cell.folder in chosen]
        tuned = {cell.folder: self.candidates[chosen[cell.folder]] if self.candidates else {} for cell in ready}
        return [self._run(cell, seed, tuned[cell.folder]) for seed, cell in itertools.product(self.seeds, ready)]

    def _run(self, cell: Cell, seed: int, values: Mapping[str, Any]) -> Task:
        folder = f"{cell.folder}/seed-{seed}"
        return _task(self.source, cell, seed, folder, ("target", "retain", "validation"), values, self.data_files)

    def to_json(self) -> dict[str, Any]:
        """plan.json: for people and for `resume`, without the resolved recipes."""
        return {
            "name": self.name,
            "baseline": self.baseline,
            "seeds": list(self.seeds),
            "learning_rate": self.rule,
            "candidates": [dict(values) for values in self.candidates],
            "cells": [
                {"label": cell.label, "folder": cell.folder, "method": cell.method, "axes": dict(cell.axes)}
                for cell in self.cells
            ],
            "tasks": [task.folder for task in self.bases] + [task.folder for _, _, task in self.tuning],
            "data_files": dict(self.data_files),
        }


def plan(
    recipe: Recipe | Path | str | dict[str, Any],
    *,
    methods: Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
    baseline: str | None = None,
    overrides: Sequence[str] = (),
    base: Path | None = None,
) -> Plan:
    """Resolve every run of a comparison, so that a mistake in any of them is found before the first.

    Args:
        recipe: a loaded recipe, a file, a bundled name or a dictionary.
        methods: names of method patches, composed with `+`, or part files; default: `compare.methods`.
        seeds: a count or a list; default: `compare.seeds`.
        baseline: a method of the table, `first` or `base`; default: `compare.baseline`.
        overrides: `path=value`, above everything else.
        base: for a dictionary, the folder that relative paths start from.

    Raises:
        RecipeError: an unknown or repeated method, baseline or key, or a value that a method refuses.
    """
    source = RecipeSource(recipe.to_lock() if isinstance(recipe, Recipe) else recipe, tuple(overrides), base)
    plain = source.load()
    wanted = plain.settings.compare
    names = list(methods or wanted.methods)
    labels = [method_label(name) for name in names]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise RecipeError(f"`{twice}` is named twice.", "Name each method once; more runs of one come from `--seeds`.")
    if BASE in labels:
        raise RecipeError("`base` is the untrained model; it is always in the table.", "Leave it out of the methods.")
    _check_splits(plain)
    files = data_files(plain)
    cells = tuple(_cells(source, plain, names, wanted.learning_rate))
    _check_folders(cells)
    tune = wanted.tune if wanted.learning_rate == "tune" else None
    seed_list = _seeds(wanted.seeds if seeds is None else seeds)
    candidates = tuple(_combinations({key: values for key, values in (tune or {}).items() if key != "seeds"}))
    return Plan(
        name=plain.name,
        source=source,
        settings=plain.data,
        cells=cells,
        baseline=_baseline(baseline or wanted.baseline, labels),
        seeds=seed_list,
        rule=wanted.learning_rate,
        candidates=candidates if tune else (),
        bases=tuple(_bases(source, cells, files)),
        tuning=tuple(_tuning(source, cells, candidates, _tune_seeds(tune["seeds"], seed_list), files))
        if tune and len(candidates) > 1
        else (),
        data_files=files,
    )


def learning_rate(settings: Mapping[str, Any]) -> float | None:
    """The learning rate of resolved settings, or None where the optimiser has no such option."""
    return settings["train"]["optimizer"].get("lr")


def _seeds(wanted: int | Sequence[int]) -> tuple[int, ...]:
    found = tuple(range(wanted)) if isinstance(wanted, int) else tuple(wanted)
    if not found or len(set(found)) < len(found):
        raise RecipeError(f"seeds: expected at least one seed, each named once, found {wanted!r}.")
    return found


def _tune_seeds(wanted: int | Sequence[int], seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(wanted, int):
        return _seeds(wanted)
    return seeds[:wanted] if wanted <= len(seeds) else tuple(range(wanted))


def _baseline(wanted: str, labels: list[str]) -> str:
    if wanted == "first":
        return labels[0]
    label = method_label(wanted)
    if label not in (*labels, BASE):
        close = nearest(label, labels)
        hint = f"Did you mean `{close}`?" if close else f"It must be in the table: {', '.join((*labels, BASE))}."
        raise RecipeError(f"compare.baseline: `{wanted}` is not one of the methods compared.", hint)
    return label


def _combinations(values: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product(*values.values()):
        yield dict(zip(values, chosen, strict=True))


def _cells(source: RecipeSource, plain: Recipe, names: list[str], rule: str) -> Iterator[Cell]:
    budget = {key: value for key, value in plain.data["budget"].items() if value is not None}
    bases: dict[str, str] = {}
    for axes in _combinations(plain.settings.compare.axes):
        # A value of an axis is the comparison's own question, so it stands above advice and rule.
        over_axes = _overrides(axes)
        reference = source.load((), over_axes)
        key = digest(list(_evaluated(reference).values()))
        base = bases.setdefault(key, f"shared/base-{key[:8]}" if bases else "shared/base")
        for name in names:
            own = source.load([name], over_axes)
            pins = [*_pin_learning_rate(own, reference, rule), *over_axes]
            if "budget" not in "".join(axes) and own.data["budget"] != reference.data["budget"]:
                pins.insert(0, f"budget={json.dumps(budget)}")
            found = source.load([name], pins)
            found.build_parts()  # an unknown option of a part is found here, not in the fourth process
            short = ", ".join(f"{path.rsplit('.', 1)[-1]}={_plain(value)}" for path, value in axes.items())
            label = f"{method_label(name)}, {short}" if short else method_label(name)
            yield Cell(
                label=label,
                folder=_slug(label.replace(", ", ",")),
                method=method_label(name),
                patch=name,
                axes=axes,
                overrides=tuple(pins),
                settings=found.data,
                origins=found.origins,
                base=base,
            )


def _check_splits(plain: Recipe) -> None:
    if plain.data["data"]["test"] is None:
        raise RecipeError("data.test is null: nothing is held out to compare on.", "Write `test: 15%`, or a file.")
    if plain.settings.compare.learning_rate == "tune" and plain.data["data"]["validation"] is None:
        raise RecipeError("data.validation is null, and tuning needs it.", "Write `validation: 10%`, or a file.")


def _check_folders(cells: Sequence[Cell]) -> None:
    taken = ["shared", "tune"]
    for cell in cells:
        if cell.folder.lower() in taken:
            raise RecipeError(
                f"The results of `{cell.label}` would be written to a folder that is taken: `{cell.folder}`.",
                "Rename that method, or the values of its axis.",
            )
        taken.append(cell.folder.lower())


def _pin_learning_rate(own: Recipe, reference: Recipe, rule: str) -> list[str]:
    """Under `same`, advice is set aside; what the method itself demands stays, and the table shows it."""
    wanted, found = learning_rate(reference.data), learning_rate(own.data)
    advised = "advice" in own.origins.get(LEARNING_RATE, "")
    if rule != "same" or wanted is None or found == wanted or not advised:
        return []
    return [f"{LEARNING_RATE}={json.dumps(wanted)}"]


def _bases(source: RecipeSource, cells: Sequence[Cell], files: Mapping[str, str]) -> Iterator[Task]:
    for folder in dict.fromkeys(cell.base for cell in cells):
        cell = next(cell for cell in cells if cell.base == folder)
        recipe = source.load((), _overrides(cell.axes))
        methods = {one.label: source.load([one.patch], one.overrides) for one in cells if one.base == folder}
        identity = _evaluated(recipe)
        yield Task(
            folder=folder,
            do="evaluate",
            cell=BASE,
            method=BASE,
            seed=recipe.settings.seed,
            sets=("target", "retain", "validation"),
            recipe=recipe.to_lock(),
            fingerprint=digest([identity, dict(files)]),
            methods={label: found.to_lock() for label, found in methods.items()},
        )


def _evaluated(recipe: Recipe) -> dict[str, Any]:
    """The blocks that an evaluation of the untrained model depends on."""
    kind = MODALITIES[modality_of(recipe.settings.model, recipe.base)]
    return evaluated_blocks(recipe, kind.evaluated)


def _tuning(
    source: RecipeSource,
    cells: Sequence[Cell],
    candidates: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    files: Mapping,
) -> Iterator[tuple[str, int, Task]]:
    for cell, (index, values), seed in itertools.product(cells, enumerate(candidates), seeds):
        name = _slug(",".join(f"{path.rsplit('.', 1)[-1]}={_plain(value)}" for path, value in values.items()))
        folder = f"tune/{cell.folder}/{name}/seed-{seed}"
        yield cell.folder, index, _task(source, cell, seed, folder, ("validation",), values, files)


def _task(
    source: RecipeSource,
    cell: Cell,
    seed: int,
    folder: str,
    sets: tuple[str, ...],
    values: Mapping[str, Any],
    files: Mapping[str, str],
) -> Task:
    recipe = source.at_seed(seed, [cell.patch], [*cell.overrides, *_overrides(values)])
    fingerprint = task_fingerprint(recipe, sets, files)
    return Task(folder, "train", cell.folder, cell.method, seed, sets, recipe.to_lock(), fingerprint)


def _overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in values.items()]


def data_files(recipe: Recipe) -> dict[str, str]:
    """sha256 of every local file that the recipe reads, so that edited data is never mixed with old runs."""
    data, found = recipe.data["data"], {}
    for source in (data["train"], data["validation"], data["test"], recipe.data["evaluate"]["retain"]):
        if not isinstance(source, Mapping) or "path" not in source:
            continue
        path = recipe.base / source["path"]
        if path.is_file():
            found[source["path"]] = file_digest(path)
    return found


def _slug(text: str) -> str:
    return re.sub(r"[^\w.+=,-]+", "-", text).strip("-.") or "cell"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
