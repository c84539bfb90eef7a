"""What steps stand on where the model is a language model: tokenizer, rendered text, answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from luthier.data.batches import Layout, data_order
from luthier.data.pairs import is_judged, is_paired, without_rejected
from luthier.data.prepare import Prepared, prepare
from luthier.data.render import Renderer
from luthier.data.shapes import form_of, form_of_shape, shape_columns
from luthier.data.sources import load_records
from luthier.engine import memory
from luthier.engine.budget import Budget
from luthier.engine.hidden_cache import HiddenStateCache
from luthier.engine.score import with_column
from luthier.engine.source import RowSource
from luthier.errors import DataError, RecipeError
from luthier.evals.base import Evaluation
from luthier.evals.evaluate import evaluate, perplexity, refuse_unscorable
from luthier.modalities.base import Log, Workspace, build_tuners, find_device, micro_tokens
from luthier.modalities.language.columns import initial_states, logprobs_of, recalls, with_fields, with_references
from luthier.modalities.language.rollout import columns_read, make_rollouts
from luthier.models.loading.load import folded, load_model
from luthier.models.policy import PADDED, TokenPolicy
from luthier.objectives.base import Objective, judgement_of, members_of
from luthier.recipe import Recipe
from luthier.rollouts.base import build_chain
from luthier.runs.journal import Journal
from luthier.runs.run import Run
from luthier.select.base import Selector
from luthier.tuners.base import Tuner
from luthier.types import Record, Row


@dataclass(frozen=True)
class LanguageWorkspace(Workspace):
    """A language model with its tokenizer, and records rendered as its tokens."""

    renderer: Renderer
    COUNTS: ClassVar[Literal["tokens", "records"]] = "tokens"
    WHOLE: ClassVar[bool] = False

    @classmethod
    def open(
        cls, recipe: Recipe, device: torch.device, dtype: str, cache: Path | None, say: Callable[[str], None]
    ) -> LanguageWorkspace:
        """Load the model and its tokenizer; render the data."""
        settings = recipe.settings
        say("loading the model")
        loaded = folded(load_model(settings.model.model_copy(update={"dtype": dtype}), recipe.base, device))
        say("preparing the data")
        renderer = Renderer(loaded.tokenizer, settings.data.render, settings.data.targets)
        prepared = prepare(settings.data, renderer, recipe.base, cache)
        check_context(loaded.module.config, settings.data.max_tokens, prepared)
        return cls(recipe, device, loaded, prepared, renderer)

    def records(self, split: str) -> list[Record]:
        """The records of `validation` or `test`, at most `evaluate.limit`, chosen by content."""
        return held_out(self.recipe, self.prepared, split)

    def policy(self, module: nn.Module) -> TokenPolicy:
        rl = self.recipe.settings.rl
        return TokenPolicy(module, temperature=1.0 if rl is None else rl.generate.temperature)

    def rows(self, run: Run, objective: Objective, selector: Selector | None) -> list[Row]:
        """The training rows with every column that objective, selector and tuners read; of a rollout the prompts."""
        rows = training_rows(objective, self.prepared)
        if self.recipe.settings.rl is not None:
            return rows
        tuners = build_tuners(run.recipe)
        rows = with_references(run, self, rows, objective, tuners)
        for read in selector.reads() if selector else ():
            rows = with_column(rows, read, logprobs_of(run, self, rows, read.split(":", 1)[1]))
        names = [name for tuner in tuners for name in tuner.fields]
        return with_fields(rows, self.prepared.records, names)

    def source(
        self, rows: list[Row], policy: Any, objective: Objective, budget: Budget, layout: Layout, log: Log
    ) -> RowSource:
        if self.recipe.settings.rl is None:
            return super().source(rows, policy, objective, budget, layout, log)
        return make_rollouts(self, rows, policy, objective, budget, self.micro(), log, layout)

    def states(self, run: Run, objective: Objective, rows: Sequence[Row]) -> HiddenStateCache | None:
        return initial_states(run, self, rows) if recalls(self.recipe, objective, rows, self.loaded.module) else None

    def live(self, objective: Objective) -> Collection[str]:
        rl = self.recipe.settings.rl
        if rl is None:
            return ()
        columns = columns_read(rl, objective, build_chain(rl.advantages, self.recipe.base))
        return {name.split(":")[1] for name in columns if name.startswith("logprobs:")}

    def layout(self, policy: TokenPolicy, trained: Sequence[Objective | Tuner]) -> Layout:
        """The layout that the recipe names; auto shares prompts where the model can and no part looks at them.

        Raises:
            ModelError, RecipeError: it cannot be had.
        """
        wanted = self.recipe.settings.train.batch.layout
        looking = next((part.kind for part in trained if part.WHOLE_ROWS), None)
        if wanted == "packed":
            policy.verify_packing()
            return "packed"
        if wanted == "shared":
            if looking is not None:
                raise RecipeError(f"`{looking}` looks at whole records, which then cannot share a prompt.", PADDED)
            policy.verify_sharing()
            return "shared"
        return "shared" if wanted == "auto" and looking is None and policy.can_share() else "padded"

    @property
    def pad_id(self) -> int:
        return self.loaded.tokenizer.pad_token_id or 0

    def micro(self) -> int:
        return micro_tokens(self.recipe, self.loaded.module, self.device)

    def estimate(self, module: nn.Module, rows: Sequence[Row], frozen: int) -> int | None:
        return predicted_memory(self.recipe, module, rows, frozen).total

    def refuse_unfit(self, objective: Objective, tuners: Sequence[Tuner]) -> None:
        rows = training_rows(objective, self.prepared)
        with_fields(rows, self.prepared.records, [name for tuner in tuners for name in tuner.fields])

    def refuse_unscorable(self, sets: Sequence[str]) -> None:
        refuse_unscorable_sets(self.recipe, self.prepared, self.renderer, sets)

    def score(self, module: nn.Module, name: str, journal: Journal) -> Evaluation | None:
        settings, (records, metric) = self.recipe.settings, set_of(self.recipe, self.prepared, name)
        if not records:
            return None
        return evaluate(
            module,
            self.loaded.tokenizer,
            self.renderer,
            records,
            metric,
            settings.generate,
            journal.phase(f"evaluate {name}", len(records)),
            base=self.recipe.base,
            seed=settings.seed,
        )

    def shown(self, module: nn.Module, sets: Sequence[str], journal: Journal) -> dict[str, Any]:
        if not (self.recipe.settings.evaluate.perplexity and "target" in sets and self.prepared.test):
            return {}
        chosen = {record.id for record in self.records("test")}
        rows = without_rejected([row for row in self.prepared.test if row.record in chosen])
        return {"perplexity": perplexity(module, rows, journal.phase("perplexity", len(rows)))}

    def save_assets(self, folder: Path) -> None:
        self.loaded.tokenizer.save_pretrained(folder)


def check_context(config: Any, max_tokens: int, prepared: Prepared) -> None:
    """Refuse rows longer than the model can read."""
    context = getattr(config, "max_position_embeddings", None)
    rows = [row for split in (prepared.train, prepared.validation, prepared.test) for row in split]
    longest = max(rows, key=len)
    if context is not None and len(longest) > context:
        raise DataError(
            f"Record {longest.record} ({prepared.records[longest.record].origin}) has {len(longest)} tokens; the model"
            f" reads at most {context}.",
            f"Set data.max_tokens to {context} or less (now {max_tokens}).",
        )


def limited(records: list[Record], limit: int | None) -> list[Record]:
    """At most `limit` records, the same ones whatever their order."""
    if limit is None or len(records) <= limit:
        return records
    return [records[i] for i in sorted(data_order([record.id for record in records], 0, 0)[:limit])]


def retain_records(recipe: Recipe) -> list[Record]:
    """The records that must not be forgotten, or none."""
    evaluate = recipe.settings.evaluate
    return [] if evaluate.retain is None else limited(load_records(evaluate.retain, recipe.base), evaluate.limit)


def held_out(recipe: Recipe, prepared: Prepared, split: str) -> list[Record]:
    """The records of `validation` or `test`, at most `evaluate.limit`, chosen by content."""
    chosen = [prepared.records[name] for name in prepared.splits[split]]
    return limited(chosen, recipe.settings.evaluate.limit)


def set_of(recipe: Recipe, prepared: Prepared, name: str) -> tuple[list[Record], Any]:
    """The records of a set (target, retain, validation), and the metric that the recipe gives it."""
    if name == "retain":
        return retain_records(recipe), "auto"
    split = {"target": "test", "validation": "validation"}[name]
    return held_out(recipe, prepared, split), recipe.settings.evaluate.metric


def refuse_unscorable_sets(recipe: Recipe, prepared: Prepared, renderer: Renderer, sets: Sequence[str]) -> None:
    """Raise LuthierError for what could not be evaluated after training."""
    for name in sets:
        records, metric = set_of(recipe, prepared, name)
        if records:
            refuse_unscorable(records, renderer, metric, recipe.base)


def training_rows(objective: Objective, prepared: Prepared) -> list[Row]:
    """What an objective learns from: good and bad answers where it reads both, else the good ones.

    Raises:
        RecipeError: it reads both, and some training record does not say which its answer is; or all are bad.
    """
    name, needed = members_of(objective)[0].kind, judgement_of(objective)
    if not needed:
        rows = without_rejected(prepared.train)
        if prepared.train and not rows:
            raise RecipeError(
                f"`{name}` learns from good answers, and every training record has `label: false`.",
                "Bring answers with `label: true` too, or choose an objective that learns from labels, such as `kto`.",
            )
        return rows
    other = next((row for row in prepared.train if not _fits(needed, row, prepared.records[row.record])), None)
    if other is not None and needed not in ("pairs", "labels"):
        raise _unfit(name, needed, prepared.records[other.record])
    if other is not None:
        where = f"record {other.record} ({prepared.records[other.record].origin})"
        if needed == "pairs":
            raise RecipeError(
                f"`{name}` learns from pairs of a chosen and a rejected answer; {where} has one answer.",
                "Bring data with the columns prompt, chosen and rejected, or choose another objective.",
            )
        if (label := prepared.records[other.record].fields.get("label")) is not None:
            raise RecipeError(
                f"`{name}` learns from answers that are labelled good or bad; the `label` of {where} is {label!r}.",
                "Write it as true or false, without quotes. Cells of CSV files are always text: use JSON lines.",
            )
        raise RecipeError(
            f"`{name}` learns from answers that are labelled good or bad; {where} has no `label`.",
            "Bring data with the columns prompt, completion and label (true or false), or prompt, chosen and rejected.",
        )
    return prepared.train


def _fits(needed: str, row: Row, record: Record) -> bool:
    """Whether the row's answer is judged as an objective needs it."""
    form = form_of(record)
    if needed == "labels":
        return is_judged(row) and form in ("", "pairs")
    return form == needed and is_paired(row)


def _unfit(name: str, needed: str, record: Record) -> RecipeError:
    """An objective reads answers of a form that a record does not have."""
    columns = next((columns for shape, columns in shape_columns().items() if form_of_shape(shape) == needed), ())
    return RecipeError(
        f"`{name}` learns from answers given as `{needed}`; record {record.id} ({record.origin}) is of the shape"
        f" `{record.shape}`.",
        f"Bring data with the columns {' and '.join(columns)}, or choose another objective."
        if columns
        else f"No shape of records in data/forms/ has `FORM = {needed!r}`.",
    )


def predicted_memory(recipe: Recipe, module: nn.Module, rows: Sequence[Row], frozen: int) -> memory.Estimate:
    """The peak that training `module` with its tuners applied will take; on the meta device too."""
    train = recipe.settings.train
    tokens = micro_tokens(recipe, module, find_device())
    loaded = 0 if next(module.parameters()).is_meta else memory.weight_bytes(module) + frozen
    return memory.estimate(
        module,
        memory.largest_micro_batch(rows, train.batch.records, tokens),
        process=0 if torch.cuda.is_available() else memory.resident() - loaded,
        several=memory.several_micro_batches(rows, train.batch.records, tokens),
        checkpointing=train.checkpointing,
        frozen=frozen,
    )
