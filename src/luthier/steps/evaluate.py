"""Evaluation of a model on the sets of a recipe: target, retain and validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from glob import has_magic
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from luthier.data.batches import limited
from luthier.data.groups import group_records, with_groups
from luthier.data.render import Renderer
from luthier.data.shapes import has_reference
from luthier.data.sources import load_records
from luthier.data.words import words_of
from luthier.engine.allocator import tune_allocator
from luthier.errors import DataError, LuthierError, RecipeError
from luthier.evals.answering import EvaluatedModel
from luthier.evals.base import Evaluation
from luthier.evals.evaluate import evaluate
from luthier.modalities.base import Workspace, compute_dtype, find_device
from luthier.modalities.language.vocabulary import refuse_unknown_ids
from luthier.modalities.language.workspace import columns_of
from luthier.models.loading.load import load_model
from luthier.models.policy import TokenPolicy
from luthier.models.trial import verify_model
from luthier.recipe import Recipe, load_recipe
from luthier.recipe.modality import MODALITIES, modality_of
from luthier.run_folder import append_jsonl
from luthier.runs.journal import Journal
from luthier.runs.run import recipe_of_run
from luthier.steps.verify import refuse_others
from luthier.types import Record, Row

SAMPLES = 8
TRIED = 16
"""Records whose longest row a model is tried on before it is scored."""


def evaluate_sets(
    workspace: Workspace, module: nn.Module, sets: Sequence[str], folder: Path, journal: Journal
) -> dict[str, Any]:
    """Score `module` on the named sets.

    Writes evaluation.jsonl, samples.jsonl and, if samples are images, samples-<set>.png.

    Returns:
        Summaries by set, with `perplexity` or the like if the workspace computes it, and `further` numbers.
    """
    for name in ("evaluation.jsonl", "samples.jsonl"):
        (folder / name).unlink(missing_ok=True)
    summaries: dict[str, Any] = {}
    further: dict[str, float] = {}
    for name in sets:
        evaluation = workspace.score(module, name, journal)
        if evaluation is None:  # the recipe has no such set
            continue
        summaries[name] = evaluation.to_json()
        for label, number in evaluation.further.items():
            further[f"{label}, {name}"] = number
        if evaluation.sheet:
            (folder / f"samples-{name}.png").write_bytes(evaluation.sheet)
        for index, answered in enumerate(evaluation.items):
            line = {"set": name, **answered.to_json()}
            append_jsonl(folder / "evaluation.jsonl", line)
            if index < SAMPLES:
                append_jsonl(folder / "samples.jsonl", line)
    unranked = workspace.shown(module, sets, journal)
    further |= unranked.get("further", {})
    return summaries | unranked | ({"further": further} if further else {})


def evaluate_model(
    model: str,
    *,
    data: str,
    metric: str | None,
    limit: int | None,
    overrides: list[str],
    console: Console,
    columns: Mapping[str, str | list[str]] | None = None,
) -> Evaluation:
    """Score a model, or the model of a run, on records, and print the score.

    Args:
        model: a hub id, a folder, a bundled name, or the folder of a run, alone or within a comparison: then the run's
            recipe decides precision, rendering, generation and metric.
        data: a file, or the name of a bundled data set.
        metric: None: the metric of the run, and `auto` for other models.
        limit: score only so many records; None: as many as `evaluate.limit` of the recipe says.
        columns: column of Luthier → column of `data`. None: those of the run's recipe if the file has them, else none.
        overrides: recipe keys, such as `generate.max_new_tokens=64` or `data.render=...`.

    Raises:
        RecipeError: the model is no language model, or there are no records.
    """
    recipe = _recipe(model, data, metric, overrides, columns)
    settings = recipe.settings
    if (modality := modality_of(settings.model, recipe.base)) != "language":
        raise RecipeError(
            f"{model} is one of the {MODALITIES[modality].name}, and `luthier eval` scores language models.",
            "`luthier run` and `luthier compare` evaluate it, on the data of its recipe.",
        )
    refuse_others(settings.generate, recipe.base)
    tune_allocator()
    device = find_device()
    typed = settings.model.model_copy(update={"dtype": compute_dtype(recipe, device)})
    loaded = load_model(typed, recipe.base, device)
    renderer = Renderer(loaded.tokenizer, settings.data.render, settings.data.targets)
    reads = (*renderer.columns, *columns_of(recipe))
    records = _records(settings.data.train, recipe.base, reads, columns is None, console)
    words = words_of(records, renderer.columns)
    records = with_groups(records, group_records(records, words, settings.data.group_by))
    records = limited(records, limit or settings.evaluate.limit, lambda record: record.id)
    if not records:
        raise RecipeError(f"{data} holds no records.")
    _say_unscored(records, console)
    refuse_unknown_ids(loaded.module, loaded.tokenizer, (renderer.render(record) for record in records))
    verify_model(TokenPolicy(loaded.module), _rendered(renderer, records))
    asked = EvaluatedModel(loaded.module, loaded.tokenizer, renderer, settings.generate, settings.seed)
    with console.status(f"scoring {len(records)} records"):
        evaluation = evaluate(asked, records, settings.evaluate.metric, base=recipe.base)
    # A metric that does not rank (perplexity) has no share of 1 to show as a percentage.
    score = f"{100 * evaluation.mean:.1f}" if evaluation.ranks else f"{evaluation.mean:.4g}"
    console.print(f"{evaluation.name}: {score} on {evaluation.n} records ({evaluation.reason})")
    for answered in evaluation.items[:4]:
        line = f"  {answered.id}: {answered.prediction[:120]!r}  (gold: {answered.reference[:80]!r})"
        console.print(line, markup=False)
    return evaluation


def _say_unscored(records: Sequence[Record], console: Console) -> None:
    if unscored := sum(not has_reference(record) for record in records):
        console.print(
            f"{unscored} of {len(records)} records have `label: false` or a last answer that is not to be learned: they"
            " are not scored.",
            markup=False,
        )


def _rendered(renderer: Renderer, records: Sequence[Record]) -> list[Row]:
    """The first TRIED records as rows; those that are no text for training are left out."""
    rows = []
    for record in records[:TRIED]:
        with suppress(LuthierError):
            rows.append(renderer.render(record))
    return [row for row in rows if len(row.ids)]


def _records(
    source: Mapping[str, Any], base: Path, reads: Sequence[str], may_be_plain: bool, console: Console
) -> list[Record]:
    """The records of a source.

    Args:
        reads: columns that tell records apart.
        may_be_plain: the columns are those of a run's recipe; a file without them may have Luthier's own names.
    """
    try:
        return load_records(source, base, reads)
    except DataError:
        if not (may_be_plain and source.get("columns")):
            raise
        try:
            records = load_records({**source, "columns": {}}, base, reads)
        except DataError:
            records = None
        if records is None:
            raise
    console.print(
        f"{source['path']} has none of the columns of the run's recipe: its own names are read.", markup=False
    )
    return records


def _recipe(
    model: str,
    source: str,
    metric: str | None,
    overrides: list[str],
    columns: Mapping[str, str | list[str]] | None = None,
) -> Recipe:
    """The recipe of an evaluation: for the model of a run, made from the run's recipe; else from the defaults."""
    weights = Path(model) / "model"
    content: dict[str, Any] = {"model": model, "data": {"train": source}, "evaluate": {"metric": metric or "auto"}}
    if columns:
        content["data"] = {"train": {"path": source, "columns": dict(columns)}}
    if not weights.is_dir():
        return load_recipe(content, overrides=overrides, base=Path.cwd())
    content["model"] = str(weights.resolve())
    run = recipe_of_run(Path(model))
    if run is None:
        return load_recipe(content, overrides=overrides, base=Path.cwd())
    written = run.data
    columns = columns or written["data"]["train"].get("columns") or {}
    is_file = Path(source).exists() or has_magic(source)
    own = {"path": _absolute(source), "columns": dict(columns)} if columns and is_file else None
    content["data"] = {
        "train": own or _absolute(source),
        **{key: written["data"][key] for key in ("render", "targets")},
    }
    content |= {"generate": written["generate"], "seed": written["seed"]}
    kept = {key: written["model"][key] for key in ("dtype", "attention", "remote_code")}
    content["model"] = {"path": content["model"], **kept}
    content["train"] = {"precision": written["train"]["precision"]}
    content["evaluate"]["metric"] = metric or written["evaluate"]["metric"]
    return load_recipe(content, overrides=overrides, base=run.base)


def _absolute(source: str) -> str:
    """A file's absolute path, since paths of the run's recipe start from another folder; a data set's name as it is."""
    return str(Path(source).absolute()) if Path(source).exists() or has_magic(source) else source
