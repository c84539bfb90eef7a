"""The check of a recipe: its data, its memory, its time and the methods that fit, without training.

Nothing is printed here: `check_page` prints the findings.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from luthier.data.arrays import arrays_of
from luthier.data.prepare import Prepared, prepare_with_report
from luthier.data.render import Renderer
from luthier.data.report import DataReport
from luthier.diffusion.policy import PREFIX
from luthier.engine import estimate, usage
from luthier.engine.assemble import Parts, apply_tuners
from luthier.engine.trains import Trains, what_trains
from luthier.errors import LuthierError, RecipeError
from luthier.evals.worked import ExplainedMetric
from luthier.modalities.base import compute_dtype, find_device
from luthier.modalities.language.columns import can_cache_reference, with_fields
from luthier.modalities.language.vocabulary import refuse_unknown_ids
from luthier.modalities.language.workspace import (
    check_context,
    columns_of,
    predicted_memory,
    refuse_unscorable_sets,
    training_rows,
)
from luthier.modalities.open import open_workspace
from luthier.models.config import context_of
from luthier.models.context import checkpoint_layers
from luthier.models.kinds import weights_of
from luthier.models.loading.load import empty_model, load_config, load_tokenizer
from luthier.models.policy import HeadOnly
from luthier.parts import find
from luthier.recipe import Method, Recipe, Stage, flat, list_methods, load_recipe, stages_of
from luthier.recipe.modality import MODALITIES, modality_of
from luthier.runs.run import SETS, Run
from luthier.steps.check_data import GuessedColumns, guessed_columns, refuse_unusable, with_unlearned
from luthier.steps.check_metric import metric_choice
from luthier.steps.check_model import ModelTrial, try_model
from luthier.steps.train import made_ready, training
from luthier.steps.trial import TriedUpdate, try_update
from luthier.steps.verify import verify
from luthier.tuners.base import TunerInputs

PROBE_UPDATES = 3
PIPELINES = "pipelines"
FAMILIES = {"select": "selectors", "tuner": "tuners"}
"""Key of `train:` → family of a method that sets this key and no objective."""


@dataclass(frozen=True)
class Network:
    """A model whose records are arrays.

    Attributes:
        name: its class.
        kind: its modality in words.
        arrays: names and shapes of a record's arrays.
    """

    name: str
    parameters: int
    kind: str
    arrays: str
    data: DataReport


@dataclass(frozen=True)
class StepLine:
    """A step of a recipe.

    Attributes:
        depth: number of loops around it.
        model: the name that `from` gives, or the path of a `model` of its own.
        share: its share of the budget, 0 to 1; None if it does not train.
    """

    depth: int
    name: str
    do: str
    model: str
    data: str
    share: float | None


@dataclass(frozen=True)
class Steps:
    """The steps in order, and the training step with the largest estimated peak memory."""

    lines: tuple[StepLine, ...]
    largest: str
    peak_bytes: int


@dataclass(frozen=True)
class Server:
    """A server whose model answers in a step; `fault` says why it cannot be reached, None if it answers."""

    step: str
    url: str
    fault: str | None


@dataclass(frozen=True)
class MethodFit:
    """A method that fits the recipe; `peak_bytes` is None where records are arrays, whose memory is not estimated."""

    name: str
    family: str
    peak_bytes: int | None


@dataclass(frozen=True)
class Methods:
    """The methods that fit, by reason the names of those that do not, and what the recipe's own trainings reach."""

    fits: tuple[MethodFit, ...]
    refused: dict[str, list[str]]
    trains: tuple[Trains, ...] = ()

    def by_family(self) -> dict[str, list[MethodFit]]:
        """The fitting methods of each family; losses first, then what they are combined with, then pipelines."""
        last = [*FAMILIES.values(), PIPELINES]
        groups: dict[str, list[MethodFit]] = {}
        for fit in sorted(self.fits, key=lambda fit: (fit.family in last, fit.family == PIPELINES, fit.family)):
            groups.setdefault(fit.family, []).append(fit)
        return groups


@dataclass(frozen=True)
class Timing:
    """Time and memory, extrapolated from a few updates.

    Attributes:
        seconds: of the whole budget.
        rate: `counts` (such as tokens) per second.
        peak_bytes: measured.
    """

    seconds: float
    rate: float
    counts: str
    peak_bytes: int
    estimated_bytes: int | None


Finding = (
    DataReport
    | GuessedColumns
    | ExplainedMetric
    | ModelTrial
    | TriedUpdate
    | Network
    | Steps
    | Server
    | Methods
    | Timing
)


def examine_recipe(
    recipe: Recipe, probe: bool, tell: Callable[[Finding], None] = lambda finding: None
) -> list[Finding]:
    """Examine a recipe; with `probe`, train a few updates to estimate the time.

    Args:
        tell: is called with each finding as soon as it is known, since some take a while.

    Returns:
        All findings, in the order of the calls of `tell`.

    Raises:
        LuthierError: the recipe cannot run as it is; `tell` has got all findings up to then.
    """
    findings = []
    for finding in _findings(recipe, probe):
        tell(finding)
        findings.append(finding)
    return findings


def _findings(recipe: Recipe, probe: bool) -> Iterator[Finding]:
    settings, stages = recipe.settings, stages_of(recipe)
    is_language = modality_of(settings.model, recipe.base) == "language"
    generates = is_language and bool(settings.steps or settings.rl)
    if probe and generates:
        raise RecipeError(
            "`--probe` times one training on records; this recipe has steps or rollouts, whose answers take time too.",
            "Leave out --probe, or run the recipe with a small budget (budget.updates=3) and read its run.json.",
        )
    verify(stages)
    if is_language:
        yield from _language_findings(recipe, stages, generates)
    else:  # arrays have no text to examine and no memory estimate
        yield _network(recipe)
        yield _methods(recipe, None)
    if probe:
        yield _timing(recipe)


def _language_findings(recipe: Recipe, stages: Sequence[Stage], generates: bool) -> Iterator[Finding]:
    settings = recipe.settings
    config = load_config(settings.model, recipe.base)
    renderer = Renderer(load_tokenizer(settings.model, recipe.base), settings.data.render, settings.data.targets)
    # Records that cannot be used are listed and left out, so the data are read once for everything below.
    prepared = prepare_with_report(settings.data, renderer, recipe.base, columns=columns_of(recipe), collect=True)
    report = with_unlearned(prepared.report.known(context=context_of(config)), [*prepared.records.values()])
    yield report
    guesses = list(guessed_columns(recipe, report, renderer))
    yield from guesses
    refuse_unusable(recipe, report, guesses)
    check_context(config, settings.data.max_tokens, prepared)
    rows = chain(prepared.train, prepared.validation, prepared.test)
    module = empty_model(settings.model, "float32", recipe.base)
    refuse_unknown_ids(module, renderer.tokenizer, rows, prepared.records)
    refuse_unscorable_sets(recipe, prepared, renderer, SETS)
    if (metric := metric_choice(recipe, prepared, renderer)) is not None:
        yield metric
    if generates:
        yield _steps(stages, prepared)
        yield from _servers(stages)
    trains = tuple(_trains(stages, prepared))
    # Raises if the recipe's own parts do not fit each other or the data.
    peak = 0 if generates else _memory(recipe, prepared).total
    yield replace(_methods(recipe, prepared), trains=trains)
    # Last: the memory of a process that has loaded the model would be counted twice.
    trial, loaded = try_model(recipe, prepared, renderer)
    yield trial
    if not generates:
        yield try_update(recipe, prepared, renderer, loaded, module, peak)


def _network(recipe: Recipe) -> Network:
    """The facts of a model whose records are arrays; opening the workspace tries the model on one record."""
    workspace = open_workspace(recipe, None)
    module = workspace.loaded.module
    return Network(
        type(module).__name__,
        sum(p.numel() for p in module.parameters()),
        MODALITIES[modality_of(recipe.settings.model, recipe.base)].name,
        arrays_of(workspace.prepared.train).replace(PREFIX, ""),
        workspace.prepared.report,
    )


def _steps(stages: Sequence[Stage], prepared: Prepared) -> Steps:
    lines = []
    for depth, stage in _nested(stages):
        names = stage.block.get("data", "")
        records = ", ".join(names) if isinstance(names, list) else names
        own_model = stage.recipe.settings.model.path if "model" in stage.block else None
        model = own_model or stage.block.get("from", "")
        share = stage.share if stage.verb.TRAINS or stage.body else None
        lines.append(StepLine(depth, stage.name, stage.do, model, records, share))
    peaks = {stage.name: _memory(stage.recipe, prepared).total for stage in _trainings(stages)}
    largest = max(peaks, key=peaks.__getitem__)
    return Steps(tuple(lines), largest, peaks[largest])


def _trains(stages: Sequence[Stage], prepared: Prepared) -> Iterator[Trains]:
    """What each training can change, on the architecture without weights; trainings that are alike count once."""
    counted = set()
    for stage in _trainings(stages):
        settings = stage.recipe.settings
        key = (settings.model.path, repr(settings.train.tuner))
        if key not in counted:
            counted.add(key)
            parts = Parts.of(stage.recipe)
            module = _model_without_weights(stage.recipe, parts)
            weights = weights_of(module)
            inputs = TunerInputs(settings.seed, training_rows(parts, prepared))
            yield what_trains(weights, parts.tuners, apply_tuners(module, parts.tuners, inputs))


def _servers(stages: Sequence[Stage]) -> Iterator[Server]:
    """Each server that a step needs, and whether it can be reached now."""
    for stage in flat(stages):
        if address := stage.verb.server(stage):
            fault = None
            try:
                stage.verb.reach(stage)
            except LuthierError as error:
                fault = str(error)
            yield Server(stage.name, address, fault)


def _nested(stages: Sequence[Stage], depth: int = 0) -> Iterator[tuple[int, Stage]]:
    for stage in stages:
        yield depth, stage
        yield from _nested(stage.body, depth + 1)


def _trainings(stages: Sequence[Stage]) -> list[Stage]:
    return [stage for stage in flat(stages) if stage.verb.TRAINS]


def _methods(recipe: Recipe, prepared: Prepared | None) -> Methods:
    """Each bundled or local method on this model and data: its estimated peak memory, or why it does not fit."""
    fits: list[MethodFit] = []
    refused: dict[str, list[str]] = {}
    for method in list_methods(recipe.base):
        try:
            stages = stages_of(load_recipe(recipe.to_lock(), [method.name]))
            verify(stages)
            peak = None
            if prepared is not None:
                peak = max(_memory(stage.recipe, prepared).total for stage in _trainings(stages))
        except LuthierError as error:
            # Without the part's name at its beginning, methods with the same reason share a line.
            reason = re.sub(r"^(?:`[^`]+` |method \w+: )", "", error.message)
            refused.setdefault(reason, []).append(method.name)
            continue
        fits.append(MethodFit(method.name, _family(method, recipe.base), peak))
    return Methods(tuple(fits), refused)


def _family(method: Method, base: Path) -> str:
    """The family of a method: the folder of its objective, the kind of part that it sets, or a pipeline of steps."""
    settings = method.method.data
    if "steps" in settings:
        return PIPELINES
    train = settings.get("train", {})
    objective = train.get("objective")
    for spec in objective if isinstance(objective, list) else [objective] if objective else []:
        kind = spec["kind"] if isinstance(spec, dict) else spec
        path = find("objective", kind, base).path
        return "your own" if kind.endswith(".py") else path.parent.name.replace("_", " ")
    return next((name for key, name in FAMILIES.items() if key in train), "others")


def _memory(recipe: Recipe, prepared: Prepared) -> estimate.Estimate:
    """The predicted peak memory of a training, from its parts on the architecture without weights."""
    parts = Parts.of(recipe)
    rows = with_fields(training_rows(parts, prepared), prepared.records, parts.needs.fields)
    module = _model_without_weights(recipe, parts)
    if recipe.settings.train.checkpointing:
        checkpoint_layers(module)
    # A frozen copy has the weights from before the tuners edit them: all, or the head if hidden states are cached.
    reference = HeadOnly(module) if can_cache_reference(recipe, parts, rows, module) else module
    copied = estimate.weight_bytes(reference) if parts.needs.references and parts.needs.frozen_copy else 0
    module = apply_tuners(module, parts.tuners, TunerInputs(recipe.settings.seed, rows))
    return predicted_memory(recipe, module, rows, copied)


def _model_without_weights(recipe: Recipe, parts: Parts) -> nn.Module:
    """The architecture of a recipe's model in the type that it computes in, which its tuners may refuse."""
    module = empty_model(recipe.settings.model, compute_dtype(recipe, find_device()), recipe.base)
    made_ready(parts.tuners, module)
    return module


def _timing(recipe: Recipe) -> Timing:
    """Train PROBE_UPDATES updates and extrapolate; the first update warms up and is not counted."""
    updates = {"budget": {"updates": PROBE_UPDATES}}
    lock = recipe.to_lock()
    short = load_recipe({**lock, "recipe": {**lock["recipe"], **updates}})
    events: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        workspace = open_workspace(short, None)
        trainer, facts = training(Run(short, Path(folder)), workspace, events.append, lambda: False)
        trainer.train()
    events = [event for event in events if event["event"] == "update"]
    if len(events) < 2:  # the first update only warms up
        raise RecipeError("The probe needs at least two updates; the data give one.")
    first, last = events[0], events[-1]
    seconds = last["seconds"] - first["seconds"]
    rate = (last["tokens"] - first["tokens"]) / seconds
    tokens = sum(len(row) for row in workspace.prepared.train)
    budget = recipe.settings.budget
    seconds_per_unit = {
        "epochs": tokens / rate,
        "records": tokens / len(workspace.prepared.splits["train"]) / rate,
        "tokens": 1 / rate,
        "updates": seconds / (len(events) - 1),
        "seconds": 1.0,
    }
    return Timing(
        budget.amount * seconds_per_unit[budget.unit],
        rate,
        facts["counts"],
        usage.peak(),
        facts["estimated_memory_bytes"],
    )
