"""The check step: data doctor, memory, time and which methods apply, without training."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn

from luthier.data.arrays import arrays_of
from luthier.data.doctor import examine, print_report
from luthier.data.prepare import Prepared, prepare
from luthier.data.render import Renderer
from luthier.diffusion.policy import PREFIX
from luthier.engine import memory
from luthier.engine.assemble import Parts, apply_tuners
from luthier.errors import DataError, LuthierError, RecipeError
from luthier.modalities.base import compute_dtype, find_device
from luthier.modalities.language.columns import recalls, with_fields
from luthier.modalities.language.workspace import check_context, predicted_memory, refuse_unscorable_sets, training_rows
from luthier.modalities.open import open_workspace
from luthier.models.context import checkpoint_layers
from luthier.models.loading.load import load_config, load_tokenizer
from luthier.models.policy import HeadOnly
from luthier.parts import build
from luthier.recipe import Recipe, Stage, flat, list_methods, load_recipe, stages_of
from luthier.recipe.modality import MODALITIES, modality_of
from luthier.recipe.steps import TRAINING
from luthier.runs.run import SETS, Run
from luthier.steps.train import training
from luthier.steps.verify import verify
from luthier.tuners.base import TunerInputs

PROBE_UPDATES = 3


def check_recipe(recipe: Recipe, probe: bool, console: Console) -> None:
    """Examine a recipe and print what was found; with `probe`, train a few updates to estimate the time.

    Raises:
        LuthierError: the recipe cannot run as it is; all findings have been printed.
    """
    settings, stages = recipe.settings, stages_of(recipe)
    if probe and (settings.steps or settings.rl):
        raise RecipeError(
            "`--probe` times one training on records; this recipe has steps or rollouts, whose answers take time too.",
            "Leave out --probe, or start the recipe with a small budget (budget.updates=3) and look at its run.json.",
        )
    verify(stages)
    if modality_of(settings.model, recipe.base) != "language":
        _check_arrays(recipe, probe, console)
        return
    renderer = Renderer(load_tokenizer(settings.model, recipe.base), settings.data.render, settings.data.targets)
    with tempfile.TemporaryDirectory() as cache:
        report = examine(settings.data, renderer, recipe.base, Path(cache))
        print_report(report, console)
        if report.problems:
            number = sum(len(found) for found in report.problems.values())
            raise DataError(f"{number} record(s) cannot be used; they are listed above.", "Correct or remove them.")
        prepared = prepare(settings.data, renderer, recipe.base, Path(cache))
    check_context(load_config(settings.model, recipe.base), settings.data.max_tokens, prepared)
    refuse_unscorable_sets(recipe, prepared, renderer, SETS)
    if settings.steps or settings.rl:
        _print_steps(stages, prepared, console)
        _print_servers(stages, console)
    _print_methods(recipe, prepared, console)
    if settings.steps or settings.rl:
        return
    if probe:
        _print_probe(recipe, console)
    else:
        console.print("[bold]time[/]    run with --probe: a few updates, then an estimate")


def _check_arrays(recipe: Recipe, probe: bool, console: Console) -> None:
    """A model whose records are arrays is loaded and tried on one of them."""
    workspace = open_workspace(recipe, None)
    module, report = workspace.loaded.module, workspace.prepared.report
    size = sum(p.numel() for p in module.parameters())
    kind = MODALITIES[modality_of(recipe.settings.model, recipe.base)].name
    console.print(f"[bold]model[/]   {type(module).__name__}, {size:,} parameters (of the {kind})", highlight=False)
    counts = ", ".join(f"{name} {count}" for name, count in report.counts.items())
    held = escape(arrays_of(workspace.prepared.train).replace(PREFIX, ""))
    console.print(f"[bold]data[/]    {counts}: {held}", markup=True, highlight=False)
    leaked = {name: found["exact"] for name, found in report.leakage.items() if found["exact"]}
    for name, count in leaked.items():
        console.print(f"        {count} records of {name} are in the training data too", markup=False)
    fits = []
    for method in list_methods(recipe.base):
        try:
            verify(stages_of(load_recipe(recipe.to_lock(), [method.name])))
        except LuthierError:
            continue
        fits.append(method.name)
    console.print(f"[bold]methods[/] {' · '.join(fits)}", highlight=False)
    if probe:
        _print_probe(recipe, console)


def _print_steps(stages: Sequence[Stage], prepared: Prepared, console: Console) -> None:
    """The steps in order, and the memory of the training step that takes most."""
    table = Table("step", "do", "from", "data", "share", box=None, pad_edge=False)
    for depth, stage in _nested(stages):
        data = stage.block.get("data", "")
        share = f"{stage.share:.0%}" if stage.do in TRAINING else ""
        aside = stage.recipe.settings.model.path if "model" in stage.block else None
        names = [aside or stage.block.get("from", ""), ", ".join(data) if isinstance(data, list) else data]
        table.add_row("  " * depth + stage.name, stage.do, *names, share)
    console.print(table, highlight=False)
    largest = max(_trainings(stages), key=lambda stage: _memory(stage.recipe, prepared).total)
    total = _memory(largest.recipe, prepared).total / 1e9
    console.print(f"[bold]memory[/]  {total:.1f} GB at the peak of `{largest.name}` (estimated; {_available()})")


def _print_servers(stages: Sequence[Stage], console: Console) -> None:
    """Whether the models that answer from elsewhere can be reached now."""
    for stage in flat(stages):
        sampler = stage.recipe.settings.generate.sampler
        if stage.do == "generate" and "url" in sampler:
            try:
                build("sampler", sampler, stage.recipe.base).reach()
                said = f"{sampler['url']} answers"
            except LuthierError as error:
                said = f"[yellow]not yet[/]: {escape(str(error))}"
            console.print(f"[bold]server[/]  {stage.name}: {said}", highlight=False)


def _nested(stages: Sequence[Stage], depth: int = 0) -> Iterator[tuple[int, Stage]]:
    for stage in stages:
        yield depth, stage
        yield from _nested(stage.body, depth + 1)


def _trainings(stages: Sequence[Stage]) -> list[Stage]:
    return [stage for stage in flat(stages) if stage.do in ("train", "rl")]


def _print_methods(recipe: Recipe, prepared: Prepared, console: Console) -> None:
    """Memory of each method on this model and machine, and what does not apply."""
    fits: list[str] = []
    refused: dict[str, list[str]] = {}
    for method in list_methods(recipe.base):
        try:
            stages = stages_of(load_recipe(recipe.to_lock(), [method.name]))
            verify(stages)
            total = max(_memory(stage.recipe, prepared).total for stage in _trainings(stages))
        except LuthierError as error:
            reason = re.sub(r"^`[^`]+` ", "", error.message)  # begins with the part's name, another for each method
            refused.setdefault(reason, []).append(method.name)
            continue
        fits.append(f"{method.name} {total / 1e9:.1f} GB")
    console.print(f"[bold]methods[/] {' · '.join(fits)}  [dim](estimated peak; {_available()})[/]", highlight=False)
    for reason, names in refused.items():
        console.print(f"   not  {', '.join(names)}: {reason}", style="dim", markup=False, emoji=False, highlight=False)


def _memory(recipe: Recipe, prepared: Prepared) -> memory.Estimate:
    """The predicted peak of a training: its parts put onto the architecture alone."""
    parts = Parts.of(recipe)
    rows = with_fields(training_rows(parts, prepared), prepared.records, parts.needs.fields)
    model = recipe.settings.model.model_copy(update={"dtype": compute_dtype(recipe, find_device())})
    module = _empty_model(model, recipe.base)
    if recipe.settings.train.checkpointing:
        checkpoint_layers(module)
    # Weights are counted before the tuners edit them: of the model, or of its head where that is all that is asked.
    kept = HeadOnly(module) if recalls(recipe, parts, rows, module) else module
    copied = memory.weight_bytes(kept) if parts.needs.references and parts.needs.frozen_copy else 0
    module = apply_tuners(module, parts.tuners, TunerInputs(recipe.settings.seed, rows))
    return predicted_memory(recipe, module, rows, copied)


def _empty_model(model: Any, base: Path) -> nn.Module:
    """The architecture without its weights (meta device)."""
    from transformers import AutoModelForCausalLM

    config = load_config(model, base)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, model.dtype))


def _available() -> str:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return f"GPU: {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return "memory of this machine unknown"
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return f"this machine: {free / 1e9:.1f} GB free"


def _print_probe(recipe: Recipe, console: Console) -> None:
    """Train PROBE_UPDATES updates and multiply; the first one warms up and is not counted."""
    updates = {"budget": {"updates": PROBE_UPDATES}}
    lock = recipe.to_lock()
    short = load_recipe({**lock, "recipe": {**lock["recipe"], **updates}})
    seen: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, console.status(f"probe: {PROBE_UPDATES} updates"):
        workspace = open_workspace(short, None)
        trainer, facts = training(Run(short, Path(folder)), workspace, seen.append, lambda: False)
        trainer.train()
    seen = [event for event in seen if event["event"] == "update"]
    first, last = seen[0], seen[-1]
    if len(seen) < 2:
        raise RecipeError("The probe needs at least two updates; the data give one.")
    rate = (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
    tokens = sum(len(row) for row in workspace.prepared.train)
    budget = recipe.settings.budget
    seconds = {
        "epochs": lambda: budget.amount * tokens / rate,
        "records": lambda: budget.amount * tokens / len(workspace.prepared.splits["train"]) / rate,
        "tokens": lambda: budget.amount / rate,
        "updates": lambda: budget.amount * (last["seconds"] - first["seconds"]) / (len(seen) - 1),
        "seconds": lambda: budget.amount,
    }[budget.unit]()
    console.print(
        f"[bold]time[/]    about {seconds / 60:.1f} min of training at {rate:,.0f} {facts['counts']}/s, "
        "without evaluation"
    )
    predicted = facts["estimated_memory_bytes"]
    told = "" if predicted is None else f", {predicted / 1e9:.2f} GB estimated"
    console.print(f"[bold]memory[/]  {memory.peak() / 1e9:.2f} GB measured{told}")
