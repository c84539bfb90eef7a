"""The evaluate step: a model's answers on the target items, on what must be retained, and on validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from luthier.data.pairs import without_rejected
from luthier.data.render import Renderer
from luthier.data.sources import load_records
from luthier.errors import RecipeError
from luthier.evals.base import Evaluation
from luthier.evals.evaluate import evaluate, perplexity
from luthier.models.load import load_model
from luthier.recipe import load_recipe
from luthier.records import append_jsonl
from luthier.steps.ground import Ground, compute_dtype, find_device, limited, retain_records
from luthier.steps.journal import Journal
from luthier.steps.verify import refuse_others
from luthier.types import Record

SAMPLES = 8


def evaluate_sets(
    ground: Ground, module: nn.Module, sets: Sequence[str], folder: Path, journal: Journal
) -> dict[str, Any]:
    """Score `module` on the named sets; writes evaluation.jsonl and samples.jsonl, returns the summaries."""
    for name in ("evaluation.jsonl", "samples.jsonl"):
        (folder / name).unlink(missing_ok=True)
    summaries: dict[str, Any] = {}
    for name in sets:
        records = _records(ground, name)
        if not records:
            continue
        found = _score(ground, module, name, records, journal)
        summaries[name] = found.to_json()
        for index, item in enumerate(found.items):
            line = {"set": name, **item.to_json()}
            append_jsonl(folder / "evaluation.jsonl", line)
            if index < SAMPLES:
                append_jsonl(folder / "samples.jsonl", line)
    if ground.recipe.settings.evaluate.perplexity and "target" in sets and ground.prepared.test:
        chosen = {record.id for record in ground.records("test")}
        rows = without_rejected([row for row in ground.prepared.test if row.atom in chosen])
        summaries["perplexity"] = perplexity(module, rows, journal.phase("perplexity", len(rows)))
    return summaries


def _records(ground: Ground, name: str) -> list[Record]:
    if name == "retain":
        return retain_records(ground.recipe)
    return ground.records({"target": "test", "validation": "validation"}[name])


def _score(ground: Ground, module: nn.Module, name: str, records: list[Record], journal: Journal) -> Evaluation:
    settings = ground.recipe.settings
    return evaluate(
        module,
        ground.loaded.tokenizer,
        ground.renderer,
        records,
        "auto" if name == "retain" else settings.evaluate.metric,
        settings.generate,
        journal.phase(f"evaluate {name}", len(records)),
        base=ground.recipe.base,
        seed=settings.seed,
    )


def evaluate_model(
    model: str, *, data: str, metric: str, limit: int | None, overrides: list[str], console: Console
) -> Evaluation:
    """Score a model, or what a run left, on records, and print the result.

    Args:
        model: a hub id, folder, bundled name, or the folder of a run (its `model/` is taken).
        data: a file, or the name of a bundled data set.
        overrides: recipe keys, such as `generate.max_new_tokens=64` or `data.render=...`.
    """
    folder = Path(model) / "model"
    chosen = str(folder) if folder.is_dir() else model
    content = {"model": chosen, "data": {"train": data}, "evaluate": {"metric": metric}}
    recipe = load_recipe(content, overrides=overrides, base=Path.cwd())
    settings = recipe.settings
    refuse_others(settings.generate, recipe.base)
    device = find_device()
    typed = settings.model.model_copy(update={"dtype": compute_dtype(recipe, device)})
    loaded = load_model(typed, recipe.base, device)
    renderer = Renderer(loaded.tokenizer, settings.data.render, settings.data.targets)
    records = limited(load_records(settings.data.train, recipe.base), limit or settings.evaluate.limit)
    if not records:
        raise RecipeError(f"{data} holds no records.")
    with console.status(f"scoring {len(records)} records"):
        found = evaluate(
            loaded.module,
            loaded.tokenizer,
            renderer,
            records,
            settings.evaluate.metric,
            settings.generate,
            base=recipe.base,
            seed=settings.seed,
        )
    score = f"{100 * found.mean:.1f}" if found.ranks else f"{found.mean:.4g}"
    console.print(f"{found.name}: {score} on {found.n} records ({found.reason})")
    for item in found.items[:4]:
        console.print(f"  {item.id}: {item.prediction[:120]!r}  (gold: {item.reference[:80]!r})", markup=False)
    return found
