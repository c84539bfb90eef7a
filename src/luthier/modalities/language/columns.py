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

    They are read in the layout in which these are trained: in bfloat16 another one rounds otherwise.

    Args:
        layout: finds that layout by trying the model; called only where there is a column to read.

    Raises:
        RecipeError: the reference is not `initial`, the model as it is before training.
    """
    if unknown := [name for name in columns if name != "logprobs:initial"]:
        raise unknown_reference(unknown[0].split(":")[1])
    if not columns:
        return rows
    return with_column(rows, columns[0], _logprobs(run, model, rows, model.loaded, layout()))


def with_fields(rows: list[Row], records: Mapping[str, Record], names: Sequence[str]) -> list[Row]:
    """The rows with these columns of their records, numbers, as row streams `field:<name>`.

    Raises:
        DataError: a record lacks the column, or has no number there; names the record.
    """
    for name in names:
        rows = [_with_field(row, records[row.record], name) for row in rows]
    return rows


def _with_field(row: Row, record: Record, name: str) -> Row:
    try:
        value = numpy.float32(record.fields[name])
    except (KeyError, TypeError, ValueError):
        found = repr(record.fields[name]) if name in record.fields else "nothing"
        raise DataError(
            f"{record.origin}: record {record.id} has {found} in the column `{name}`; a number is needed.",
            "The tuner reads this column of every training record.",
        ) from None
    return replace(row, streams={**row.streams, f"field:{name}": Stream(value, "row")})


def logprobs_of(run: Run, model: LanguageModel, rows: Sequence[Row], name: str) -> Column:
    """Log-probabilities of the rows, as selectors look at them: `initial`, or of a model by name, folder or run folder.

    Raises:
        ModelError: there is no such model, or its tokens are not those of the trained one.
    """
    if name == "initial":
        return _logprobs(run, model, rows, model.loaded, "padded")
    base = run.recipe.base
    path = str(Path(name) / "model") if (base / name / "model").is_dir() else name
    dtype = compute_dtype(run.recipe, model.device)
    settings = ModelSettings(path=path, dtype=dtype)  # pyright: ignore[reportArgumentType]
    loaded = load_model(settings, base, model.device)
    if loaded.tokenizer.get_vocab() != model.loaded.tokenizer.get_vocab():
        raise ModelError(
            f"The reference {name} has another tokenizer than the model that is trained.",
            "Use a model of the same family: rows are scored as they are tokenised.",
        )
    return _logprobs(run, model, rows, loaded, "padded")


RECALLED_BYTES = 4 * 2**30
"""Most that hidden states of a reference may take on disk; above, the reference is asked at every update."""


def recalls(recipe: Recipe, parts: Parts, rows: Sequence[Row], module: nn.Module) -> bool:
    """Whether the hidden states of `initial` at the rows are computed once: each row is learned from at least once.

    In bf16 they then carry the rounding of another batch than the trained model's. A budget in seconds pays for its
    reference as it goes; a rollout's rows are new every time.
    """
    settings = recipe.settings
    if not parts.needs.references or settings.rl is not None:
        return False
    for member in members_of(parts.objective):
        if any(read.startswith("logits:") for read in member.reads) and not _asks_at_rows(member):
            return False
    epochs = parts.budget(recipe).epochs(rows, settings.train.batch.records)
    weight: Tensor = module.get_output_embeddings().weight  # pyright: ignore
    return epochs is not None and epochs >= 1 and state_bytes(rows, weight.shape[1], weight.dtype) <= RECALLED_BYTES


def _asks_at_rows(objective: Objective) -> bool:
    """Whether it leaves to the engine what the reference is asked, and so asks it at the rows as they are."""
    return isinstance(objective, TokenObjective) and type(objective).terms is TokenObjective.terms


def initial_states(run: Run, model: LanguageModel, rows: Sequence[Row]) -> HiddenStateCache:
    """Computed once per model and rows, kept while the runs of a comparison need them."""
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
    """Delete the hidden states of references that nobody will ask again."""
    for reference in policy.references.values():
        if isinstance(reference, CachedReference):
            reference.states.file.unlink(missing_ok=True)


@contextmanager
def _once(run: Run, file: Path, known: bool) -> Iterator[None]:
    """Time what makes a file, and note it beside it: a run that finds the file is told what it would have taken."""
    note, before = file.with_suffix(".json"), run.seconds.get("score", 0.0)
    if known:
        spent = read_json(note)["seconds"] if note.is_file() else 0.0
        run.reused["score"] = run.reused.get("score", 0.0) + spent
        yield
        return
    with run.timed("score"):
        yield
    write_json(note, {"seconds": run.seconds["score"] - before})


def _logprobs(run: Run, model: LanguageModel, rows: Sequence[Row], loaded: Loaded, layout: Layout) -> Column:
    """Computed once per model and rows, then read from the cache that the runs of a comparison share."""
    policy = TokenPolicy(loaded.module)
    dtype = next(loaded.module.parameters()).dtype
    key = column_key(loaded.weights_id, f"{dtype}/{layout}", rows)
    tokens = micro_tokens(run.recipe, loaded.module, model.device)
    file = run.shared / "scores" / f"{key}.npz"

    def compute() -> Column:
        return score(policy, rows, ["logprobs"], tokens, layout, run.phase("score", len(rows)))["logprobs"]

    with _once(run, file, file.is_file()):
        return cached_column(file, compute)
