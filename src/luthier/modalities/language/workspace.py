"""Workspace of language models: tokenizer, rendered text, answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy
import torch
from torch import nn

from luthier.data.batches import Layout, limited, prompt_length
from luthier.data.groups import group_records, with_groups
from luthier.data.pairs import is_judged, is_paired, without_rejected
from luthier.data.prepare import Prepared, prepare
from luthier.data.render import Renderer
from luthier.data.shapes import form_of, form_of_shape, shape_columns
from luthier.data.sources import load_records
from luthier.engine import estimate, usage
from luthier.engine.assemble import Parts
from luthier.engine.hidden_cache import HiddenStateCache
from luthier.engine.layouts import choose_layout
from luthier.engine.score import with_column
from luthier.engine.source import Records, RowSource
from luthier.errors import DataError, RecipeError
from luthier.evals.answering import EvaluatedModel
from luthier.evals.base import Evaluation
from luthier.evals.evaluate import RECORD_COLUMNS, evaluate, perplexity, refuse_unscorable
from luthier.modalities.base import Log, Workspace, find_device, micro_tokens
from luthier.modalities.language.columns import (
    can_cache_reference,
    initial_states,
    logprobs_of,
    with_fields,
    with_references,
)
from luthier.modalities.language.model import LanguageModel
from luthier.modalities.language.rollout import Rollouts, columns_read
from luthier.modalities.language.vocabulary import refuse_unknown_ids
from luthier.models.config import context_of, embedded_tokens
from luthier.models.loading.load import folded, load_model
from luthier.models.loading.saving import read_back
from luthier.models.policy import TokenPolicy
from luthier.models.trial import verify_model
from luthier.objectives.sum import members_of
from luthier.recipe import Recipe
from luthier.recipe.columns import read_columns
from luthier.recipe.settings import RL
from luthier.rollouts.base import build_chain
from luthier.runs.journal import Journal
from luthier.runs.run import Run
from luthier.types import Record, Row, Stream


@dataclass(frozen=True)
class LanguageWorkspace(Workspace, LanguageModel):
    """A language model with its tokenizer, and records rendered as its tokens."""

    COUNTS: ClassVar[Literal["tokens", "records"]] = "tokens"
    WHOLE: ClassVar[bool] = False

    @classmethod
    def open(
        cls, recipe: Recipe, device: torch.device, dtype: str, cache: Path | None, say: Callable[[str], None]
    ) -> LanguageWorkspace:
        """Load the model and its tokenizer; render the data.

        Raises:
            LuthierError: the model or the data cannot be used, or a row is longer than the model's context, or has a
                token that the embedding lacks.
        """
        settings = recipe.settings
        say("loading the model")
        loaded = folded(load_model(settings.model.model_copy(update={"dtype": dtype}), recipe.base, device))
        say("preparing the data")
        renderer = Renderer(loaded.tokenizer, settings.data.render, settings.data.targets)
        prepared = prepare(settings.data, renderer, recipe.base, cache, columns_of(recipe))
        check_context(loaded.module.config, settings.data.max_tokens, prepared)
        workspace = cls(recipe, device, loaded, prepared, renderer)
        workspace.verify()
        return workspace

    def verify(self) -> None:
        """Raise LuthierError if the model does not know a token of the rows, or cannot be trained or scored at all."""
        loaded, prepared = self.loaded, self.prepared
        rows = chain(prepared.train, prepared.validation, prepared.test)
        refuse_unknown_ids(loaded.module, loaded.tokenizer, rows, prepared.records)
        verify_model(TokenPolicy(loaded.module), [row for row in prepared.train if len(row.ids)])

    def records(self, split: str) -> list[Record]:
        """The records of `validation` or `test` that are evaluated, as `held_out` chooses them."""
        return held_out(self.recipe, self.prepared, split)

    def policy(self, module: nn.Module) -> TokenPolicy:
        rl = self.recipe.settings.rl
        return TokenPolicy(module, temperature=rl.generate.temperature if isinstance(rl, RL) else 1.0)

    def rows(self, run: Run, parts: Parts) -> list[Row]:
        """The training rows with every column that objective, selector and tuners read; for `rl` without columns."""
        rows = training_rows(parts, self.prepared)
        if self.recipe.settings.rl is not None:
            return rows  # only their prompts are used: the rows to score come with each rollout
        needs = parts.needs
        untuned = TokenPolicy(self.loaded.module)
        if needs.columns:
            rows = with_references(run, self, rows, needs.columns, lambda: self.layout(untuned, parts))
        for column in needs.candidate_columns:
            rows = with_column(rows, column, logprobs_of(run, self, rows, column.split(":", 1)[1]))
        return with_fields(rows, self.prepared.records, needs.fields) if needs.fields else rows

    def source(self, parts: Parts, rows: list[Row], policy: Any, layout: Layout, log: Log) -> RowSource:
        if self.recipe.settings.rl is None:
            return Records.of(self.recipe, parts, rows)
        return Rollouts(self, parts, rows, policy, self.micro(), log, layout)

    def states(self, run: Run, parts: Parts, rows: Sequence[Row]) -> HiddenStateCache | None:
        if not can_cache_reference(self.recipe, parts, rows, self.loaded.module):
            return None
        return initial_states(run, self, rows)

    def online_references(self, parts: Parts) -> Collection[str]:
        rl = self.recipe.settings.rl
        if not isinstance(rl, RL):
            return ()
        columns = columns_read(rl, parts.needs.reads, build_chain(rl.advantages, self.recipe.base))
        return {name.split(":")[1] for name in columns if name.startswith("logprobs:")}

    def layout(self, policy: TokenPolicy, parts: Parts, *readers: str) -> Layout:
        """The layout that the recipe names or, with `auto`, the first that the model reads these rows in.

        Raises:
            ModelError, RecipeError: the model or a part does not work with that layout, or with these rows at all.
        """
        asked, rows = self.recipe.settings.train.batch.layout, training_rows(parts, self.prepared)
        if isinstance(rl := self.recipe.settings.rl, RL):
            rows = answered(rows, rl.generate.max_new_tokens, context_of(self.loaded.module))
        return choose_layout(
            policy, rows, asked, next((reader for reader in (parts.needs.whole_rows, *readers) if reader), None)
        )

    @property
    def pad_id(self) -> int:
        # Padding is embedded, although no target sees it: a token added to the tokenizer alone has no embedding.
        pad, known = self.loaded.tokenizer.pad_token_id or 0, embedded_tokens(self.loaded.module)
        return pad if known is None or pad < known else 0

    def micro(self) -> int:
        return micro_tokens(self.recipe, self.loaded.module, self.device)

    def estimate(self, module: nn.Module, rows: Sequence[Row], frozen: int) -> int | None:
        return predicted_memory(self.recipe, module, rows, frozen).total

    def refuse_unfit(self, parts: Parts) -> None:
        with_fields(training_rows(parts, self.prepared), self.prepared.records, parts.needs.fields)

    def refuse_unscorable(self, sets: Sequence[str]) -> None:
        refuse_unscorable_sets(self.recipe, self.prepared, self.renderer, sets, self.loaded.module)

    def score(self, module: nn.Module, name: str, journal: Journal) -> Evaluation | None:
        settings, (records, metric) = self.recipe.settings, set_of(self.recipe, self.prepared, name)
        if not records:
            return None
        model = EvaluatedModel(module, self.loaded.tokenizer, self.renderer, settings.generate, settings.seed)
        return evaluate(model, records, metric, journal.phase(f"evaluate {name}", len(records)), self.recipe.base)

    def shown(self, module: nn.Module, sets: Sequence[str], journal: Journal) -> dict[str, Any]:
        if not (self.recipe.settings.evaluate.perplexity and "target" in sets and self.prepared.test):
            return {}
        chosen = {record.id for record in self.records("test")}
        rows = without_rejected([row for row in self.prepared.test if row.record in chosen and row.targets])
        if not rows:  # every answer of the set may be marked as context
            return {}
        return {"perplexity": perplexity(module, rows, journal.phase("perplexity", len(rows)))}

    def read_back(self, folder: Path, module: nn.Module) -> dict[str, Any]:
        row = self.prepared.train[0] if self.prepared.train else self.prepared.test[0]
        return read_back(folder, self.recipe.settings.model, module, row.ids.tolist()).to_json()

    def save_assets(self, folder: Path) -> None:
        self.loaded.tokenizer.save_pretrained(folder)


def columns_of(recipe: Recipe) -> tuple[str, ...]:
    """The columns of the data that evaluation and parts of a recipe read besides question and answer."""
    return tuple(dict.fromkeys((*RECORD_COLUMNS, *read_columns(recipe), *recipe.settings.data.identity)))


def check_context(config: Any, max_tokens: int, prepared: Prepared) -> None:
    """Raise DataError for rows longer than the context of the model's text decoder."""
    context = context_of(config)
    longest = max((*prepared.train, *prepared.validation, *prepared.test), key=len)
    if context is not None and len(longest) > context:
        raise DataError(
            f"Record {longest.record} ({prepared.records[longest.record].origin}) has {len(longest)} tokens; the model"
            f" reads at most {context}.",
            f"Set data.max_tokens to {context} or less (now {max_tokens}).",
        )


def answered(rows: Sequence[Row], tokens: int, context: int | None) -> list[Row]:
    """The rows with answers as long as a rollout may write them, to try layouts on; what they say does not matter."""
    longer = []
    for row in rows:
        prompt = prompt_length(row)
        length = min(prompt + tokens, context or prompt + tokens)
        if prompt and length > len(row):
            ids = numpy.resize(row.ids, length)
            weights = (numpy.arange(length) >= prompt).astype(numpy.float32)
            row = replace(row, ids=ids, streams={"weights": Stream(weights, "token")})
        longer.append(row)
    return longer


def retain_records(recipe: Recipe) -> list[Record]:
    """The records of `evaluate.retain`, at most `evaluate.limit`; an empty list if the recipe names none."""
    settings = recipe.settings.evaluate
    if settings.retain is None:
        return []
    records = load_records(settings.retain, recipe.base)
    return limited(with_groups(records, group_records(records)), settings.limit, lambda record: record.id)


def held_out(recipe: Recipe, prepared: Prepared, split: str) -> list[Record]:
    """The records of `validation` or `test`, at most `evaluate.limit`, chosen by the hash of their content."""
    chosen = [prepared.records[name] for name in prepared.splits[split]]
    return limited(chosen, recipe.settings.evaluate.limit, lambda record: record.id)


def set_of(recipe: Recipe, prepared: Prepared, name: str) -> tuple[list[Record], Any]:
    """The records of a set (target, retain, validation), and the metric that the recipe gives it."""
    if name == "retain":
        return retain_records(recipe), "auto"
    split = {"target": "test", "validation": "validation"}[name]
    return held_out(recipe, prepared, split), recipe.settings.evaluate.metric


def refuse_unscorable_sets(
    recipe: Recipe, prepared: Prepared, renderer: Renderer, sets: Sequence[str], module: nn.Module | None = None
) -> None:
    """Raise LuthierError for records of these sets that could not be scored after training.

    Args:
        module: the model, if it is loaded; then one that cannot answer them is refused too.
    """
    for name in sets:
        records, metric = set_of(recipe, prepared, name)
        if records:
            refuse_unscorable(records, renderer, metric, recipe.base, module)


def training_rows(parts: Parts, prepared: Prepared) -> list[Row]:
    """The rows that the objective learns from: good and bad answers if it reads both, else the good ones.

    Raises:
        RecipeError: the objective reads judged answers, and a training record has none of that form; or it reads good
            answers, and every record has `label: false`.
    """
    name, form = members_of(parts.objective)[0].kind, parts.needs.judgement
    if not form:
        rows = without_rejected(prepared.train)
        if prepared.train and not rows:
            raise RecipeError(
                f"`{name}` learns from good answers, and every training record has `label: false`.",
                "Add answers with `label: true`, or choose an objective that learns from labels, such as `kto`.",
            )
        return rows
    for row in prepared.train:
        if not _fits(form, row, prepared.records[row.record]):
            raise _unfit(name, form, prepared.records[row.record])
    return prepared.train


def _fits(form: str, row: Row, record: Record) -> bool:
    """Whether the row's answer is judged in the form that an objective needs."""
    form_of_data = form_of(record)
    if form == "labels":
        # Both answers of a pair are judged: the chosen one counts as good, the rejected one as bad.
        return is_judged(row) and form_of_data in ("", "pairs")
    return form_of_data == form and is_paired(row)


def _unfit(name: str, form: str, record: Record) -> RecipeError:
    """The error of a record whose answers do not have the form that the objective `name` needs."""
    where = f"record {record.id} ({record.origin})"
    if form == "pairs":
        return RecipeError(
            f"`{name}` learns from pairs of a chosen and a rejected answer; {where} has one answer.",
            "Use data with the columns prompt, chosen and rejected, or choose another objective.",
        )
    if form == "labels" and (label := record.fields.get("label")) is not None:
        return RecipeError(
            f"`{name}` learns from answers that are labelled good or bad; the `label` of {where} is {label!r}.",
            "Write true or false, without quotes. Cells of CSV files are always text: use JSON lines.",
        )
    if form == "labels":
        return RecipeError(
            f"`{name}` learns from answers that are labelled good or bad; {where} has no `label`.",
            "Use data with the columns prompt, completion and label (true or false), or prompt, chosen and rejected.",
        )
    columns = next((columns for shape, columns in shape_columns().items() if form_of_shape(shape) == form), ())
    return RecipeError(
        f"`{name}` learns from answers of the form `{form}`; {where} has the shape `{record.shape}`.",
        f"Use data with the columns {' and '.join(columns)}, or choose another objective."
        if columns
        else f"No shape of records in data/forms/ has `FORM = {form!r}`.",
    )


def predicted_memory(recipe: Recipe, module: nn.Module, rows: Sequence[Row], frozen: int) -> estimate.Estimate:
    """The predicted peak memory of training `module`, tuners applied; the module may be on the meta device.

    Args:
        frozen: bytes of frozen copies of the model, such as references.
    """
    train = recipe.settings.train
    tokens = micro_tokens(recipe, module, find_device())
    # The process as it is now holds the weights already, unless these are on the meta device.
    loaded = 0 if next(module.parameters()).is_meta else estimate.weight_bytes(module) + frozen
    return estimate.estimate(
        module,
        estimate.largest_micro_batch(rows, train.batch.records, tokens),
        process=0 if torch.cuda.is_available() else usage.resident() - loaded,
        several=estimate.several_micro_batches(rows, train.batch.records, tokens),
        checkpointing=train.checkpointing,
        frozen=frozen,
    )
