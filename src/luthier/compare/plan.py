"""Plan a comparison: methods × seeds × axes under one budget, as a list of tasks. Nothing runs here."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.data.sources import files_of
from luthier.errors import RecipeError, nearest
from luthier.recipe import Recipe, load_recipe, method_label
from luthier.recipe.columns import read_columns
from luthier.recipe.fingerprint import digest, evaluated_blocks, file_digest, task_fingerprint
from luthier.recipe.modality import MODALITIES, modality_of

BASE = "base"
LEARNING_RATE = "train.optimizer.lr"


@dataclass(frozen=True)
class Task:
    """One process: train and evaluate one method at one seed, or evaluate the base model.

    Attributes:
        folder: relative to the comparison's.
        arm: folder of the arm, or `base`.
        sets: the sets to evaluate; a tuning run must not see the held-out target items.
        recipe: the resolved recipe, as a lock.
        fingerprint: two tasks with the same one compute the same.
        methods: of an evaluation of the base: the recipes to try on the data, so that a method that does not fit
            is refused before any training.
    """

    folder: str
    do: Literal["train", "evaluate"]
    arm: str
    method: str
    seed: int
    sets: tuple[str, ...]
    recipe: Mapping[str, Any]
    fingerprint: str
    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_json(self, shared: Path) -> dict[str, Any]:
        """The content of task.json, which the worker reads. `shared` holds what the runs of a comparison share."""
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
class Arm:
    """What one row of the table compares: a method at one combination of axis values."""

    label: str
    folder: str  # safe as a path
    method: str
    patch: str  # what the user wrote: `dft+dora`, `./mine.py`
    axes: Mapping[str, Any]
    overrides: tuple[str, ...]
    settings: Mapping[str, Any]
    origins: Mapping[str, str]
    base: str  # folder of the base model's evaluation on the same items

    @property
    def learning_rate(self) -> float | None:
        """The learning rate before tuning; None where the optimiser has no such option."""
        return learning_rate(self.settings)


@dataclass(frozen=True)
class RecipeLoader:
    """Loads a recipe with a method and overrides, and keeps it: 3 methods at 3 seeds would load it 21 times."""

    recipe: Any
    overrides: tuple[str, ...]
    base: Path | None
    loaded: dict[tuple[tuple[str, ...], ...], Recipe] = field(default_factory=dict, compare=False, repr=False)

    def load(self, methods: Sequence[str] = (), extra: Sequence[str] = ()) -> Recipe:
        """The resolved recipe; an override in `extra` replaces the user's for the same key."""
        key = (tuple(methods), tuple(extra))
        if key not in self.loaded:
            self.loaded[key] = self._load(methods, extra)
        return self.loaded[key]

    def at_seed(self, seed: int, methods: Sequence[str], extra: Sequence[str]) -> Recipe:
        """The resolved recipe with this seed, loaded once for all seeds."""
        # `seed=0` also replaces a seed of the command line, which would override those of the comparison.
        return self.load(methods, [*extra, "seed=0"]).with_seed(seed)

    def _load(self, methods: Sequence[str], extra: Sequence[str]) -> Recipe:
        replaced = tuple(f"{_path_of(text)}." for text in extra)
        kept = [text for text in self.overrides if not f"{_path_of(text)}.".startswith(replaced)]
        return load_recipe(self.recipe, list(methods), [*kept, *extra], self.base)


@dataclass(frozen=True)
class Plan:
    """Everything that a comparison will do; only the winners of tuning are unknown before it runs."""

    name: str
    recipes: RecipeLoader
    settings: Mapping[str, Any]
    arms: tuple[Arm, ...]
    baseline: str
    seeds: tuple[int, ...]
    rule: Literal["same", "advice", "tune"]
    candidates: tuple[Mapping[str, Any], ...]  # values tried by `tune`; empty otherwise
    bases: tuple[Task, ...]
    tuning: tuple[tuple[str, int, Task], ...]  # arm's folder, index into candidates, task
    data_files: Mapping[str, str] = field(default_factory=dict)  # path: sha256

    def runs(self, chosen: Mapping[str, int]) -> list[Task]:
        """The runs of the table: all methods at the first seed come first, so that a comparison cut short compares.

        Args:
            chosen: arm's folder → index of the winning candidate; a tuned arm without one is left out.
        """
        tasks = []
        for seed, arm in itertools.product(self.seeds, self.arms):
            if self.candidates and arm.folder not in chosen:
                continue
            tuned = self.candidates[chosen[arm.folder]] if self.candidates else {}
            folder, sets = f"{arm.folder}/seed-{seed}", ("target", "retain", "validation")
            tasks.append(_task(self.recipes, arm, seed, folder, sets, tuned, self.data_files))
        return tasks

    def to_json(self) -> dict[str, Any]:
        """The content of plan.json, for readers and for `--resume`: no resolved recipes."""
        rows = []
        for arm in self.arms:
            rows.append({"label": arm.label, "folder": arm.folder, "method": arm.method, "axes": dict(arm.axes)})
        return {
            "name": self.name,
            "baseline": self.baseline,
            "seeds": list(self.seeds),
            "learning_rate": self.rule,
            "candidates": [dict(values) for values in self.candidates],
            "cells": rows,
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
    recipes = RecipeLoader(recipe.to_lock() if isinstance(recipe, Recipe) else recipe, tuple(overrides), base)
    untouched = recipes.load()  # by any method: what all arms have in common
    options = untouched.settings.compare
    names = list(methods or options.methods)
    labels = [method_label(name) for name in names]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise RecipeError(f"`{twice}` is named twice.", "Name each method once; more runs of one come from `--seeds`.")
    if BASE in labels:
        raise RecipeError("`base` is the untrained model; it is always in the table.", "Leave it out of the methods.")
    _check_splits(untouched)
    files = data_files(untouched)
    arms = tuple(_arms(recipes, untouched, names, options.learning_rate))
    recipes = _same_identity(recipes, untouched, arms)
    _check_folders(arms)
    seed_list = _seeds(options.seeds if seeds is None else seeds)
    candidates: tuple[Mapping[str, Any], ...] = ()
    tuning: tuple[tuple[str, int, Task], ...] = ()
    if options.learning_rate == "tune" and options.tune:
        grid = {path: values for path, values in options.tune.items() if path != "seeds"}
        candidates = tuple(_combinations(grid))
        if len(candidates) > 1:  # a single candidate has won already
            tune_seeds = _tune_seeds(options.tune["seeds"], seed_list)
            tuning = tuple(_tuning(recipes, arms, candidates, tune_seeds, files))

    return Plan(
        name=untouched.name,
        recipes=recipes,
        settings=untouched.data,
        arms=arms,
        baseline=_baseline(baseline or options.baseline, labels),
        seeds=seed_list,
        rule=options.learning_rate,
        candidates=candidates,
        bases=tuple(_bases(recipes, arms, files)),
        tuning=tuning,
        data_files=files,
    )


def _same_identity(recipes: RecipeLoader, untouched: Recipe, arms: Sequence[Arm]) -> RecipeLoader:
    """The loader, with `data.identity` set to what any of the methods reads if they read different columns.

    Records that differ in a column that one method reads would be copies for the others, and the data no longer the
    same for all.
    """
    if modality_of(untouched.settings.model, untouched.base) != "language":
        return recipes
    every = [untouched, *(recipes.load([arm.patch], arm.overrides) for arm in arms)]
    read = [{*read_columns(recipe), *recipe.settings.data.identity} for recipe in every]
    if all(columns == read[0] for columns in read):
        return recipes
    columns = json.dumps(sorted(set().union(*read)))
    kept = [text for text in recipes.overrides if _path_of(text) != "data.identity"]
    return RecipeLoader(recipes.recipe, (*kept, f"data.identity={columns}"), recipes.base)


def learning_rate(settings: Mapping[str, Any]) -> float | None:
    """The learning rate of resolved settings, or None where the optimiser has no such option."""
    return settings["train"]["optimizer"].get("lr")


def _seeds(wanted: int | Sequence[int]) -> tuple[int, ...]:
    seeds = tuple(range(wanted)) if isinstance(wanted, int) else tuple(wanted)
    if not seeds or len(set(seeds)) < len(seeds):
        raise RecipeError(f"seeds: expected at least one seed, each named once, found {wanted!r}.")
    return seeds


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
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _arms(recipes: RecipeLoader, untouched: Recipe, names: list[str], rule: str) -> Iterator[Arm]:
    budget = {unit: amount for unit, amount in untouched.data["budget"].items() if amount is not None}
    bases: dict[str, str] = {}
    for axes in _combinations(untouched.settings.compare.axes):
        # A value of an axis is the comparison's own question, so it stands above advice and rule.
        over_axes = _overrides(axes)
        reference = recipes.load((), over_axes)
        # Axes that change no held-out item share one evaluation of the base model.
        evaluated = digest(list(_evaluated(reference).values()))
        base = bases.setdefault(evaluated, f"shared/base-{evaluated[:8]}" if bases else "shared/base")
        for name in names:
            own = recipes.load([name], over_axes)
            pins = [*_pin_learning_rate(own, reference, rule), *over_axes]
            # A method may not buy itself more training, unless the budget is what the axes compare.
            if "budget" not in "".join(axes) and own.data["budget"] != reference.data["budget"]:
                pins.insert(0, f"budget={json.dumps(budget)}")
            recipe = recipes.load([name], pins)
            recipe.build_parts()  # an unknown option of a part ends the plan, not the fourth process
            short = ", ".join(f"{path.rsplit('.', 1)[-1]}={_short(value)}" for path, value in axes.items())
            label = f"{method_label(name)}, {short}" if short else method_label(name)
            yield Arm(
                label=label,
                folder=_slug(label.replace(", ", ",")),
                method=method_label(name),
                patch=name,
                axes=axes,
                overrides=tuple(pins),
                settings=recipe.data,
                origins=recipe.origins,
                base=base,
            )


def _check_splits(recipe: Recipe) -> None:
    if recipe.data["data"]["test"] is None:
        raise RecipeError("data.test is null: nothing is held out to compare on.", "Write `test: 15%`, or a file.")
    if recipe.settings.compare.learning_rate == "tune" and recipe.data["data"]["validation"] is None:
        raise RecipeError("data.validation is null, and tuning needs it.", "Write `validation: 10%`, or a file.")


def _check_folders(arms: Sequence[Arm]) -> None:
    taken = ["shared", "tune"]
    for arm in arms:
        folder = arm.folder.lower()  # some file systems do not tell upper from lower case
        if folder in taken:
            raise RecipeError(
                f"The results of `{arm.label}` would be written to a folder that is taken: `{arm.folder}`.",
                "Rename that method, or the values of its axis.",
            )
        taken.append(folder)


def _pin_learning_rate(own: Recipe, reference: Recipe, rule: str) -> list[str]:
    """Under `same`, advised rates are overridden; a rate that a method demands stays, and the table shows it."""
    common = learning_rate(reference.data)
    advised = "advice" in own.origins.get(LEARNING_RATE, "")
    if rule != "same" or common is None or learning_rate(own.data) == common or not advised:
        return []
    return [f"{LEARNING_RATE}={json.dumps(common)}"]


def _bases(recipes: RecipeLoader, arms: Sequence[Arm], files: Mapping[str, str]) -> Iterator[Task]:
    by_base: dict[str, list[Arm]] = {}
    for arm in arms:
        by_base.setdefault(arm.base, []).append(arm)
    for folder, its_arms in by_base.items():
        recipe = recipes.load((), _overrides(its_arms[0].axes))
        yield Task(
            folder=folder,
            do="evaluate",
            arm=BASE,
            method=BASE,
            seed=recipe.settings.seed,
            sets=("target", "retain", "validation"),
            recipe=recipe.to_lock(),
            fingerprint=digest([_evaluated(recipe), dict(files)]),
            methods={arm.label: recipes.load([arm.patch], arm.overrides).to_lock() for arm in its_arms},
        )


def _evaluated(recipe: Recipe) -> dict[str, Any]:
    """The blocks that an evaluation of the untrained model depends on."""
    modality = MODALITIES[modality_of(recipe.settings.model, recipe.base)]
    return evaluated_blocks(recipe, modality.evaluated)


def _tuning(
    recipes: RecipeLoader,
    arms: Sequence[Arm],
    candidates: Sequence[Mapping[str, Any]],
    seeds: Sequence[int],
    files: Mapping[str, str],
) -> Iterator[tuple[str, int, Task]]:
    for arm, (index, values), seed in itertools.product(arms, enumerate(candidates), seeds):
        name = _slug(",".join(f"{path.rsplit('.', 1)[-1]}={_short(value)}" for path, value in values.items()))
        folder = f"tune/{arm.folder}/{name}/seed-{seed}"
        yield arm.folder, index, _task(recipes, arm, seed, folder, ("validation",), values, files)


def _task(
    recipes: RecipeLoader,
    arm: Arm,
    seed: int,
    folder: str,
    sets: tuple[str, ...],
    tuned: Mapping[str, Any],
    files: Mapping[str, str],
) -> Task:
    recipe = recipes.at_seed(seed, [arm.patch], [*arm.overrides, *_overrides(tuned)])
    fingerprint = task_fingerprint(recipe, sets, files)
    return Task(folder, "train", arm.folder, arm.method, seed, sets, recipe.to_lock(), fingerprint)


def _overrides(values: Mapping[str, Any]) -> list[str]:
    return [f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in values.items()]


def _path_of(override: str) -> str:
    return override.partition("=")[0].strip()


def data_files(recipe: Recipe) -> dict[str, str]:
    """SHA-256 by path of every local file that the recipe reads, so that edited data is never mixed with old runs."""
    data, hashes = recipe.data["data"], {}
    for source in (data["train"], data["validation"], data["test"], recipe.data["evaluate"]["retain"]):
        if not isinstance(source, Mapping) or "path" not in source:
            continue
        for path in files_of(source, recipe.base):
            hashes[_path_in(recipe.base, source["path"], path)] = file_digest(path)
    return hashes


def _path_in(base: Path, written: str | list[str], path: Path) -> str:
    """A file's path as the recipe writes it; relative to the recipe's folder if it is one of several."""
    return written if isinstance(written, str) and path == base / written else os.path.relpath(path, base)


def _slug(text: str) -> str:
    """The text as a name of a folder."""
    return re.sub(r"[^\w.+=,-]+", "-", text).strip("-.") or "cell"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
