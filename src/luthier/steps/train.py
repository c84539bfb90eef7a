"""The train step: from a recipe to a tuned model, its scores and its record."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from luthier import parts
from luthier.engine import memory
from luthier.engine.budget import Budget
from luthier.engine.distributed import World
from luthier.engine.score import Column, cached_column, column_key, score, with_column
from luthier.engine.source import Records
from luthier.engine.trainer import Batching, Saving, Trainer
from luthier.errors import LuthierError, ModelError, RunError
from luthier.models.load import Loaded, load_model
from luthier.models.policy import TokenPolicy
from luthier.objectives.base import build_objective, reads_of
from luthier.recipe import Recipe
from luthier.recipe.lock import versions
from luthier.recipe.settings import Model as ModelSettings
from luthier.records import read_json, read_jsonl, write_json
from luthier.steps.evaluate import evaluate_sets
from luthier.steps.ground import (
    Ground,
    build_tuners,
    compute_dtype,
    frozen_copies,
    micro_tokens,
    predicted_memory,
    stand,
    training_rows,
    tuned_policy,
    unknown_reference,
)
from luthier.steps.journal import Journal
from luthier.steps.stop import Ended, Stop, stop_signals
from luthier.tuners.base import Planning
from luthier.types import Row

SETS = ("target", "retain", "validation")
OUTSIDE = ("name", "compare", "observe", "out")  # keys that do not change what a run computes


@dataclass
class Run:
    """One training in its folder."""

    recipe: Recipe
    folder: Path
    method: str = "run"
    sets: Sequence[str] = SETS
    cache: Path | None = None
    console: Console | None = None
    world: World = field(default_factory=World)
    seconds: dict[str, float] = field(default_factory=dict)

    def record(self, status: str, error: str | None = None, **more: Any) -> dict[str, Any]:
        """What run.json says."""
        return {
            "status": status,
            "error": error,
            "method": self.method,
            "seed": self.recipe.settings.seed,
            "settings": self.recipe.data,
            "fingerprint": fingerprint(self.recipe),
            "seconds": self.seconds,
            "versions": versions(),
            "hardware": hardware(),
            **more,
        }

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def run_recipe(recipe: Recipe, folder: Path, observers: Sequence[str]) -> dict[str, Any]:
    """Train and evaluate a recipe in `folder`; goes on from its newest checkpoint. Returns run.json.

    Raises:
        LuthierError: what stopped it is also in run.json, unless that holds the results of a finished run.
    """
    console = Console() if "progress" in observers else None
    run = Run(recipe, folder, console=console, cache=folder / "shared")
    return finished(recipe, folder) or carry_out(run)


def finished(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    """The record of a run that ended here: it is not trained again, and no other recipe may replace it.

    Raises:
        RunError: it was another recipe's.
    """
    if not (folder / "run.json").is_file():
        return None
    record = read_json(folder / "run.json")
    if record["status"] != "done":
        return None
    if record.get("fingerprint") != fingerprint(recipe):
        raise RunError(f"{folder} holds the finished run of another recipe.", "Start a new run.")
    return record


def carry_out(run: Run) -> dict[str, Any]:
    """Train, save, evaluate, record."""
    folder = run.folder if run.world.rank == 0 else run.folder / f"rank-{run.world.rank}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with Journal(folder, run.console) as journal, stop_signals() as stop:
            record = _carry_out(run, folder, journal, stop)
    except Ended:
        record = run.record("stopped")
    except LuthierError as error:
        write_json(folder / "run.json", run.record("failed", str(error)))
        raise
    write_json(folder / "run.json", record)
    if record["status"] == "done":
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return record


def _carry_out(run: Run, folder: Path, journal: Journal, stop: Stop) -> dict[str, Any]:
    with stop.at_once():
        with run.timed("load"):
            journal.phase("load")
            ground = stand(run.recipe, run.cache)
            journal.progress(1, 1)
        trainer, facts = training(run, ground, journal.event, stop.requested)
        trainer.resume()
        journal.forget_after(trainer.position.updates)
    journal.phase("train")
    with run.timed("train"):
        status = trainer.train()
    facts |= _trained(trainer, folder)
    if status == "stopped" or run.world.rank > 0:
        return run.record(status, train=facts)
    _save_model(trainer, ground, folder / "model")
    with run.timed("evaluate"), stop.at_once():
        evaluation = evaluate_sets(ground, trainer.policy.module, run.sets, folder, journal)
    return run.record(status, train=facts, evaluation=evaluation)


def training(
    run: Run, ground: Ground, observe: Callable[[dict[str, Any]], None], stop_requested: Callable[[], bool]
) -> tuple[Trainer, dict[str, Any]]:
    """A trainer for a recipe, and what is known of the training before it starts."""
    settings = run.recipe.settings
    train = settings.train
    objective = build_objective(train.objective, run.recipe.base)
    tuners = build_tuners(run.recipe)
    selector = None if train.select is None else parts.build("selector", train.select, run.recipe.base)
    rows = with_references(run, ground, training_rows(objective, ground.prepared), reads_of(objective))
    for read in selector.reads() if selector else ():
        rows = with_column(rows, read, logprobs_of(run, ground, rows, read.split(":", 1)[1]))
    memory.reset_peak()
    module = ground.loaded.module
    if train.checkpointing:
        module.gradient_checkpointing_enable({"use_reentrant": False})  # pyright: ignore[reportCallIssue]
    policy = tuned_policy(module, tuners, objective, Planning(settings.seed, rows))
    tokens = micro_tokens(run.recipe, ground.device)
    layout = "padded" if train.batch.layout == "auto" else train.batch.layout
    if layout == "packed":
        policy.verify_packing()
    pad = ground.loaded.tokenizer.pad_token_id
    kept = selector.keep if selector else 1.0
    budget = Budget(settings.budget.unit, settings.budget.amount, kept)  # pyright: ignore[reportArgumentType]
    trainer = Trainer(
        policy=policy,
        tuners=tuners,
        objective=objective,
        source=Records(rows, settings.seed, budget),
        optimizer=parts.build("optimizer", train.optimizer, run.recipe.base),
        schedule=parts.build("schedule", train.schedule, run.recipe.base),
        batching=Batching(train.batch.records, tokens, layout, pad_id=0 if pad is None else pad),
        seed=settings.seed,
        world=run.world,
        saving=Saving(run.folder / "checkpoints", train.save.every, train.save.keep, fingerprint(run.recipe)),
        observe=observe,
        stop_requested=stop_requested,
        selector=selector,
    )
    estimate = predicted_memory(run.recipe, policy.module, rows, frozen_copies(policy))
    trained = sum(p.numel() for p in trainer.masters.compute.values())
    return trainer, {
        "estimated_memory_bytes": estimate.total,
        "trainable_parameters": trained,
        "weights_id": ground.loaded.weights_id,
        "data": ground.prepared.report.to_json(),
    }


def with_references(run: Run, ground: Ground, rows: list[Row], reads: Sequence[str]) -> list[Row]:
    """The rows with every `logprobs:<reference>` that the objective reads.

    Raises:
        RecipeError: the reference is not `initial`, the model as it is before training.
    """
    names = [read for read in reads if read.startswith("logprobs:")]
    if unknown := [name for name in names if name != "logprobs:initial"]:
        raise unknown_reference(unknown[0].split(":")[1])
    return with_column(rows, names[0], _initial_logprobs(run, ground, rows)) if names else rows


def logprobs_of(run: Run, ground: Ground, rows: Sequence[Row], name: str) -> Column:
    """Log-probabilities of the rows under a model: `initial`, or a model's name, folder or run folder.

    Raises:
        ModelError: there is no such model, or its tokens are not those of the trained one.
    """
    if name == "initial":
        return _initial_logprobs(run, ground, rows)
    base = run.recipe.base
    path = str(Path(name) / "model") if (base / name / "model").is_dir() else name
    dtype = compute_dtype(run.recipe, ground.device)
    settings = ModelSettings(path=path, dtype=dtype)  # pyright: ignore[reportArgumentType]
    loaded = load_model(settings, base, ground.device)
    if loaded.tokenizer.get_vocab() != ground.loaded.tokenizer.get_vocab():
        raise ModelError(
            f"The reference {name} has another tokenizer than the model that is trained.",
            "Use a model of the same family: rows are scored as they are tokenised.",
        )
    return _logprobs(run, ground, rows, loaded)


def _initial_logprobs(run: Run, ground: Ground, rows: Sequence[Row]) -> Column:
    return _logprobs(run, ground, rows, ground.loaded)


def _logprobs(run: Run, ground: Ground, rows: Sequence[Row], loaded: Loaded) -> Column:
    """Computed once per model and rows, then read from the cache that the runs of a comparison share."""
    module = loaded.module
    key = column_key(loaded.weights_id, str(next(module.parameters()).dtype), rows)
    tokens = micro_tokens(run.recipe, ground.device)
    with run.timed("score"):
        return cached_column(
            (run.cache or run.folder / "shared") / "scores" / f"{key}.npz",
            lambda: score(TokenPolicy(module), rows, ["logprobs"], tokens)["logprobs"],
        )


def _trained(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """The training's numbers for run.json."""
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if "loss" in line]
    position = trainer.position
    return {
        **position.to_json(),
        "target_tokens": position.targets,
        "tokens_per_second": position.tokens / position.seconds if position.seconds else None,
        "peak_memory_bytes": memory.peak(),
        "loss_first": lines[0]["loss"] if lines else None,
        "loss_last": lines[-1]["loss"] if lines else None,
        "micro_tokens": trainer.micro_tokens,
        "budget": {trainer.source.budget.unit: trainer.source.budget.amount},
        "repeatable": trainer.source.budget.repeatable,
    }


def _save_model(trainer: Trainer, ground: Ground, folder: Path) -> None:
    """The result, loadable without Luthier, with its tokenizer; replaces what an earlier try left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    masters = {name: master.detach() for name, master in trainer.masters.master.items()}
    if len(trainer.tuners) == 1:
        trainer.tuners[0].save(trainer.policy.module, masters, folder)
    else:  # no format holds several tuners, so the result is one plain model; what stood below merges first
        for tuner in trainer.tuners:
            trainer.policy.module = tuner.merge(trainer.policy.module)
        trainer.policy.module.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    ground.loaded.tokenizer.save_pretrained(folder)


def fingerprint(recipe: Recipe) -> str:
    """A hash of everything in a recipe that changes what a run computes; of part files the text, not the place."""
    kept = {key: value for key, value in recipe.data.items() if key not in OUTSIDE}
    text = json.dumps(_with_texts(kept, recipe.text_of_parts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _with_texts(value: Any, texts: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _with_texts(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_texts(item, texts) for item in value]
    return texts.get(value, value) if isinstance(value, str) else value


def hardware() -> dict[str, Any]:
    """What the run ran on."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "threads": torch.get_num_threads(), "gpu": gpu, "system": platform.system()}
