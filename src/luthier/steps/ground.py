"""What every step stands on: device, model, tokenizer, rendered data."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luthier import parts
from luthier.data.batches import data_order
from luthier.data.pairs import is_judged, is_paired, without_rejected
from luthier.data.prepare import Prepared, prepare
from luthier.data.render import Renderer
from luthier.data.sources import load_records
from luthier.engine import memory
from luthier.errors import DataError, RecipeError
from luthier.models.load import Loaded, fast_bfloat16, load_model
from luthier.models.policy import Policy, Reference, TokenPolicy
from luthier.objectives.base import Objective, judgement_of, members_of, reads_of
from luthier.recipe import Recipe
from luthier.recipe.settings import Train
from luthier.tuners.base import Planning, Tuner
from luthier.types import Record, Row

MICRO_TOKENS = {"cpu": 512, "cuda": 16384}
"""Positions per forward when `micro` is auto. On a CPU 512 is as fast as 4096 and takes 1 GB less (bench/micro.py)."""
LARGE, MICRO_TOKENS_OF_LARGE = 50_000_000, 256
"""On a CPU a model of so many parameters is as fast with half of that, for less memory; a small one is slower."""


@dataclass(frozen=True)
class Ground:
    """A recipe's model and data, ready to train and evaluate."""

    recipe: Recipe
    device: torch.device
    loaded: Loaded
    renderer: Renderer
    prepared: Prepared

    def records(self, split: str) -> list[Record]:
        """The records of `validation` or `test`, at most `evaluate.limit`, chosen by content."""
        chosen = [self.prepared.records[name] for name in self.prepared.splits[split]]
        return limited(chosen, self.recipe.settings.evaluate.limit)


def find_device() -> torch.device:
    """A GPU when there is one (this process's own under torchrun), else the processor."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def compute_dtype(recipe: Recipe, device: torch.device) -> str:
    """The type the model computes in: `train.precision`, else `model.dtype`, else bf16 where that is fast."""
    settings = recipe.settings
    for wanted in (settings.train.precision, settings.model.dtype):
        if wanted != "auto":
            return wanted
    return "bfloat16" if fast_bfloat16(device) else "float32"


def stand(recipe: Recipe, cache: Path | None, say: Callable[[str], None] = lambda text: None) -> Ground:
    """Load the model and prepare the data of a recipe."""
    device = find_device()
    settings = recipe.settings
    model = settings.model.model_copy(update={"dtype": compute_dtype(recipe, device)})
    say("loading the model")
    loaded = load_model(model, recipe.base, device)
    say("preparing the data")
    renderer = Renderer(loaded.tokenizer, settings.data.render, settings.data.targets)
    prepared = prepare(settings.data, renderer, recipe.base, cache)
    check_context(loaded.module.config, settings.data.max_tokens, prepared)
    return Ground(recipe, device, loaded, renderer, prepared)


def check_context(config: Any, max_tokens: int, prepared: Prepared) -> None:
    """Refuse rows longer than the model can read."""
    context = getattr(config, "max_position_embeddings", None)
    rows = [row for split in (prepared.train, prepared.validation, prepared.test) for row in split]
    longest = max(rows, key=len)
    if context is not None and len(longest) > context:
        raise DataError(
            f"Record {longest.atom} ({prepared.records[longest.atom].origin}) has {len(longest)} tokens; the model"
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
    fits = is_paired if needed == "pairs" else is_judged
    other = next((row for row in prepared.train if not fits(row)), None)
    if other is not None:
        where = f"record {other.atom} ({prepared.records[other.atom].origin})"
        if needed == "pairs":
            raise RecipeError(
                f"`{name}` learns from pairs of a chosen and a rejected answer; {where} has one answer.",
                "Bring data with the columns prompt, chosen and rejected, or choose another objective.",
            )
        raise RecipeError(
            f"`{name}` learns from answers that are labelled good or bad; {where} has no `label`.",
            "Bring data with the columns prompt, completion and label (true or false), or prompt, chosen and rejected.",
        )
    return prepared.train


def build_tuners(recipe: Recipe) -> list[Tuner]:
    """The recipe's tuners, in written order."""
    spec = recipe.settings.train.tuner
    return [parts.build("tuner", item, recipe.base) for item in (spec if isinstance(spec, list) else [spec])]


def micro_tokens(recipe: Recipe, module: nn.Module, device: torch.device) -> int:
    """Positions per forward."""
    micro = recipe.settings.train.batch.micro
    if micro != "auto":
        return micro
    large = device.type == "cpu" and sum(p.numel() for p in module.parameters()) >= LARGE
    return MICRO_TOKENS_OF_LARGE if large else MICRO_TOKENS[device.type]


def tuned_policy(
    module: nn.Module,
    tuners: Sequence[Tuner],
    objective: Objective,
    given: Planning,
    temperature: float = 1.0,
    make: Callable[[nn.Module], Any] | None = None,
    live: Collection[str] = (),
) -> Any:
    """Apply the tuners and bind the references that the objective reads, captured before any surgery.

    `initial` is the module inside the tuners' `disabled()` when all of them restore the base, else a
    frozen copy. `temperature` is that of sampling, the same for policy and references.
    `make` gives what objectives see of a module, a language model's `TokenPolicy` unless said otherwise.
    `live` names references that are asked again and again, as those of rollouts are.

    Raises:
        RecipeError: the objective reads a reference that nothing provides, or two tuners exclude each other.
    """
    refuse_excluded(tuners)
    wanted = {read.split(":")[1] for read in reads_of(objective) if read.startswith("logits:")} | set(live)
    if unknown := sorted(wanted - {"initial"}):
        raise unknown_reference(unknown[0])
    make = make or partial(TokenPolicy, temperature=temperature)
    frozen = None
    if wanted and not all(tuner.RESTORES == "base" for tuner in tuners):
        frozen = make(copy.deepcopy(module).requires_grad_(False).eval())
    module.requires_grad_(False)
    for tuner in tuners:
        trained = [p for p in module.parameters() if p.requires_grad]
        module = tuner.apply(module, tuner.plan(module, given))
        for parameter in trained:  # PEFT freezes all but its own
            parameter.requires_grad_(True)
    policy = make(module)
    policy.companions = objective.companions(policy)
    policy.verify()
    if frozen is not None:
        policy.references["initial"] = Reference(frozen)
    elif wanted:
        policy.references["initial"] = Reference(policy, lambda: _without(tuners, policy.module))
    return policy


def refuse_excluded(tuners: Sequence[Tuner]) -> None:
    """Raise RecipeError for tuners that cannot be combined."""
    for place, tuner in enumerate(tuners):
        for other in [*tuners[:place], *tuners[place + 1 :]]:
            if other.kind in tuner.EXCLUDES:
                raise RecipeError(f"The tuners `{tuner.kind}` and `{other.kind}` cannot be combined.")
            if not tuner.MERGES:
                raise RecipeError(
                    f"The tuners `{tuner.kind}` and `{other.kind}` cannot be combined: the result of several is one"
                    f" merged model, and what `{tuner.kind}` learns cannot be merged."
                )


def refuse_other_rules(tuners: Sequence[Tuner], optimizer: Any) -> None:
    """Raise RecipeError if the recipe names an optimiser and a tuner moves its parameters by a rule of its own."""
    own = [tuner for tuner in tuners if tuner.optimizer(optimizer) is not None]
    default = Train.model_fields["optimizer"].default["kind"]
    if own and optimizer.kind != default:
        raise RecipeError(
            f"The tuner `{own[0].kind}` moves its parameters by a rule of its own, not by `{optimizer.kind}`.",
            f"Leave train.optimizer.kind at `{default}`: learning rate, decay and clipping are taken from there.",
        )


def unknown_reference(name: str) -> RecipeError:
    """The objective reads a reference that nothing provides."""
    return RecipeError(f"The objective reads a reference called `{name}`.", "Known: `initial`.")


def frozen_copies(policy: Policy) -> int:
    """How many further copies of the model its references need."""
    return len({id(reference.policy) for reference in policy.references.values()} - {id(policy)})


def predicted_memory(recipe: Recipe, module: nn.Module, rows: Sequence[Row], copies: int) -> memory.Estimate:
    """The peak that training `module` with its tuners applied will take; on the meta device too."""
    train = recipe.settings.train
    tokens = micro_tokens(recipe, module, find_device())
    loaded = 0 if next(module.parameters()).is_meta else memory.weight_bytes(module) * (1 + copies)
    return memory.estimate(
        module,
        memory.largest_micro_batch(rows, train.batch.records, tokens),
        process=0 if torch.cuda.is_available() else memory.resident() - loaded,
        several=memory.several_micro_batches(rows, train.batch.records, tokens),
        checkpointing=train.checkpointing,
        copies=copies,
    )


@contextmanager
def _without(tuners: Sequence[Tuner], module: nn.Module) -> Iterator[Any]:
    with ExitStack() as stack:
        for tuner in tuners:
            stack.enter_context(tuner.disabled(module))
        yield
