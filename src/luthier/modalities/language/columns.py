"""Columns of the training rows: log-probabilities under models other than the one in training, computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor, nn

from luthier.data.batches import Layout
from luthier.engine.assemble import Parts, unknown_reference
from luthier.engine.hidden_cache import CachedReference, HiddenStateCache, state_bytes
from luthier.engine.score import Column, cached_column, column_key, score, with_column
from luthier.errors import DataError, ModelError
from luthier.modalities.base import compute_dtype, micro_tokens
from luthier.modalities.language.model import LanguageModel
from luthier.models.loading.load import Loaded, load_model
from luthier.models.policy import Reference, TokenPolicy
from luthier.models.trial import ragged_layout
from luthier.objectives.base import Objective, TokenObjective
from luthier.objectives.sum import members_of
from luthier.recipe import Recipe
from luthier.recipe.settings import Model as ModelSettings
from luthier.run_folder import read_json, write_json
from luthier.runs.run import Run
from luthier.types import Record, Row, Stream


def with_references(
    run: Run, model: LanguageModel, rows: list[Row], columns: Sequence[str], layout: Callable[[], Layout]
) -> list[Row]:
    """The rows with every column `logprobs:<reference>` that the objective reads.

    The forward uses the layout of the training: in bfloat16 another layout rounds differently.

    Args:
        layout: determines that layout by trying the model; called only if there is a column to compute.

    Raises:
        RecipeError: a reference other than `initial`, the model before training.
    """
    if unknown := [name for name in columns if name != "logprobs:initial"]:
        raise unknown_reference(unknown[0].split(":")[1])
    if not columns:
        return rows
    return with_column(rows, columns[0], _logprobs(run, model, rows, model.loaded, layout()))


def with_fields(rows: list[Row], records: Mapping[str, Record], names: Sequence[str]) -> list[Row]:
    """The rows with numeric columns of their records as row streams `field:<name>`.

    Raises:
        DataError: a record lacks the column or has no number there; the message names the record.
    """
    for name in names:
        rows = [_with_field(row, records[row.record], name) for row in rows]
    return rows


def _with_field(row: Row, record: Record, name: str) -> Row:
    try:
        number = numpy.float32(record.fields[name])
    except (KeyError, TypeError, ValueError):
        cell = repr(record.fields[name]) if name in record.fields else "nothing"
        raise DataError(
            f"{record.origin}: record {record.id} has {cell} in the column `{name}`; a number is needed.",
            "The tuner reads this column of every training record.",
        ) from None
    return replace(row, streams={**row.streams, f"field:{name}": Stream(number, "row")})


def logprobs_of(run: Run, model: LanguageModel, rows: Sequence[Row], name: str) -> Column:
    """Log-probabilities of the rows under `initial` or another model, for selectors: row id → [T].

    Args:
        name: `initial`, or the model's name, folder or run folder.

    Raises:
        ModelError: there is no such model, or its tokenizer is not that of the trained one.
    """
    if name == "initial":
        return _logprobs(run, model, rows, model.loaded)
    base = run.recipe.base
    path = str(Path(name) / "model") if (base / name / "model").is_dir() else name
    dtype = compute_dtype(run.recipe, model.device)
    settings = ModelSettings(path=path, dtype=dtype)  # pyright: ignore[reportArgumentType]
    loaded = load_model(settings, base, model.device)
    if loaded.tokenizer.get_vocab() != model.loaded.tokenizer.get_vocab():
        raise ModelError(
            f"The reference {name} has another tokenizer than the model that is trained.",
            "Use a model of the same family: it scores the token ids of the trained model.",
        )
    return _logprobs(run, model, rows, loaded)


CACHED_BYTES = 4 * 2**30
"""Most bytes on disk for the hidden states of a reference; above, the reference runs at every update."""


def can_cache_reference(recipe: Recipe, parts: Parts, rows: Sequence[Row], module: nn.Module) -> bool:
    """Whether the hidden states of `initial` are computed once for all rows, rather than at every update.

    They are if every row is trained on at least once and the states fit CACHED_BYTES. In bfloat16 they then carry the
    rounding of another batch than the trained model's. Not for a budget in seconds, which the pass over all rows would
    not be charged to, and not for rollouts, whose rows are new every time.
    """
    settings = recipe.settings
    if not parts.needs.references or settings.rl is not None:
        return False
    for member in members_of(parts.objective):
        reads_logits = any(column.startswith("logits:") for column in member.reads)
        if reads_logits and not _reads_reference_at_rows(member):
            return False
    epochs = parts.budget(recipe).epochs(rows, settings.train.batch.records)
    weight: Tensor = module.get_output_embeddings().weight  # pyright: ignore
    return epochs is not None and epochs >= 1 and state_bytes(rows, weight.shape[1], weight.dtype) <= CACHED_BYTES


def _reads_reference_at_rows(objective: Objective) -> bool:
    """Whether the reference runs on the rows as they are: an objective with `terms` of its own may change them."""
    return isinstance(objective, TokenObjective) and type(objective).terms is TokenObjective.terms


def initial_states(run: Run, model: LanguageModel, rows: Sequence[Row]) -> HiddenStateCache:
    """Hidden states of the initial model at the rows, computed once per model and rows.

    The file stays as long as the runs of a comparison need it.
    """
    module = model.loaded.module
    weight: Tensor = module.get_output_embeddings().weight  # pyright: ignore
    file = run.shared / "states" / column_key(model.loaded.weights_id, str(weight.dtype), rows)
    states = HiddenStateCache(file, rows, weight.shape[1], weight.dtype)
    tokens = micro_tokens(run.recipe, module, model.device)
    with _once(run, file, states.known):
        if not states.known:
            states.compute(Reference(TokenPolicy(module)), rows, tokens, run.phase("score", len(rows)))
    return states


def forget_states(policy: Any) -> None:
    """Delete the hidden states of references that no later run will read."""
    for reference in policy.references.values():
        if isinstance(reference, CachedReference):
            reference.states.file.unlink(missing_ok=True)


@contextmanager
def _once(run: Run, file: Path, known: bool) -> Iterator[None]:
    """Time the computation of a cached file, and store the seconds next to it.

    A run that reuses the file counts these seconds as `reused`: otherwise the method that runs first would look slower.
    """
    seconds_file, before = file.with_suffix(".json"), run.seconds.get("score", 0.0)
    if known:
        spent = read_json(seconds_file)["seconds"] if seconds_file.is_file() else 0.0
        run.reused["score"] = run.reused.get("score", 0.0) + spent
        yield
        return
    with run.timed("score"):
        yield
    write_json(seconds_file, {"seconds": run.seconds["score"] - before})


def _logprobs(
    run: Run, model: LanguageModel, rows: Sequence[Row], loaded: Loaded, layout: Layout | None = None
) -> Column:
    """Log-probabilities of the rows under a model, read from the cache that the runs of a comparison share."""
    policy = TokenPolicy(loaded.module)
    layout = layout or ragged_layout(policy, rows)
    dtype = next(loaded.module.parameters()).dtype
    # Type and layout belong to the key: both change the rounding.
    key = column_key(loaded.weights_id, f"{dtype}/{layout}", rows)
    tokens = micro_tokens(run.recipe, loaded.module, model.device)
    file = run.shared / "scores" / f"{key}.npz"

    def compute() -> Column:
        return score(policy, rows, ["logprobs"], tokens, layout, run.phase("score", len(rows)))["logprobs"]

    with _once(run, file, file.is_file()):
        return cached_column(file, compute)
