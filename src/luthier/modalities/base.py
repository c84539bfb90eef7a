"""What every step stands on: a device, a model, rows of each split, and what these mean for one kind of model."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from luthier import parts
from luthier.data.batches import Layout
from luthier.data.prepare import Prepared
from luthier.engine import memory
from luthier.engine.budget import Budget
from luthier.engine.hidden_cache import CachedReference, HiddenStateCache
from luthier.engine.source import Records, RowSource
from luthier.errors import RecipeError
from luthier.evals.base import Evaluation
from luthier.models.checks import verify
from luthier.models.loading.load import Loaded, fast_bfloat16
from luthier.models.policy import HeadOnly, Policy, Reference, TokenPolicy
from luthier.objectives.base import Objective
from luthier.objectives.sum import reads_of
from luthier.recipe import Recipe
from luthier.recipe.settings import Train
from luthier.runs.journal import Journal
from luthier.runs.run import Run
from luthier.select.base import Selector
from luthier.tuners.base import Tuner, TunerInputs
from luthier.types import Row

Log = Callable[[dict[str, Any]], None]
MICRO_RECORDS = {"cpu": 256, "cuda": 16}
"""Records per forward where they are no sequences of tokens: small ones on a processor, cached latents on a GPU."""
MICRO_TOKENS = {"cpu": 512, "cuda": 16384}
"""Positions per forward when `micro` is auto. On a CPU 512 is as fast as 4096 and takes 1 GB less (bench/micro.py)."""
LARGE, MICRO_TOKENS_OF_LARGE = 50_000_000, 256
"""On a CPU a model of so many parameters takes half of that: 0.4 GiB less for SmolLM2-135M. Small ones slow down."""


@dataclass(frozen=True)
class Workspace(ABC):
    """A recipe's model and data, ready to train and evaluate: the one thing that differs between kinds of models.

    `COUNTS` is what the length of a row counts; `WEIGHTS` the folder of the weights within that of a saved model;
    `WHOLE` says that a model is always saved with its tuning folded in.
    """

    recipe: Recipe
    device: torch.device
    loaded: Loaded
    prepared: Prepared
    COUNTS: ClassVar[Literal["tokens", "records"]] = "records"
    WEIGHTS: ClassVar[str] = ""
    WHOLE: ClassVar[bool] = True

    @abstractmethod
    def policy(self, module: nn.Module) -> Any:
        """What objectives see of a module."""

    def rows(self, run: Run, objective: Objective, selector: Selector | None) -> list[Row]:
        """The training rows with all that these parts read."""
        return self.prepared.train

    def source(
        self, rows: list[Row], policy: Any, objective: Objective, budget: Budget, layout: Layout, log: Log
    ) -> RowSource:
        """Where the rows of each update come from."""
        shuffled = self.recipe.settings.train.batch.order == "shuffled"
        return Records(rows, self.recipe.settings.seed, budget, shuffled)

    def states(self, run: Run, objective: Objective, rows: Sequence[Row]) -> HiddenStateCache | None:
        """Hidden states of the initial model at the rows, where they are computed once rather than at every update."""
        return None

    def live(self, objective: Objective) -> Collection[str]:
        """References that are asked again and again."""
        return ()

    def layout(self, policy: Any, trained: Sequence[Objective | Tuner]) -> Layout:
        """How the rows of a batch are laid out."""
        return "padded"

    @property
    def pad_id(self) -> int:
        """The token that padding is made of."""
        return 0

    def micro(self) -> int:
        """Positions per forward."""
        micro = self.recipe.settings.train.batch.micro
        return MICRO_RECORDS[self.device.type] if micro == "auto" else micro

    def estimate(self, module: nn.Module, rows: Sequence[Row], frozen: int) -> int | None:
        """The predicted peak of training in bytes, or None where nothing can be said."""
        return None

    def refuse_unfit(self, objective: Objective, tuners: Sequence[Tuner]) -> None:
        """Raise LuthierError for parts that cannot learn from these data."""
        return

    def refuse_unscorable(self, sets: Sequence[str]) -> None:
        """Raise LuthierError for what could not be evaluated after training, such as a set that is not there."""
        return

    @abstractmethod
    def score(self, module: nn.Module, name: str, journal: Journal) -> Evaluation | None:
        """A module on the records of a set (target, retain, validation); None where there are none."""

    def shown(self, module: nn.Module, sets: Sequence[str], journal: Journal) -> dict[str, Any]:
        """Further numbers, which decide nothing."""
        return {}

    @abstractmethod
    def save_assets(self, folder: Path) -> None:
        """Write into a saved model's folder what belongs to it besides its weights."""


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


def budget_of(recipe: Recipe) -> Budget:
    """How far a training of this recipe may go."""
    budget, select = recipe.settings.budget, recipe.settings.train.select
    keep = 1.0 if select is None else parts.build("selector", select, recipe.base).keep
    return Budget(budget.unit, budget.amount, keep)  # pyright: ignore[reportArgumentType]


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
    given: TunerInputs,
    temperature: float = 1.0,
    make: Callable[[nn.Module], Any] | None = None,
    live: Collection[str] = (),
    states: HiddenStateCache | None = None,
) -> Any:
    """Apply the tuners and bind the references that the objective reads, captured before any surgery.

    `initial` is the module inside the tuners' `disabled()` when all of them restore the base, else a
    frozen copy. `temperature` is that of sampling, the same for policy and references.
    `make` gives what objectives see of a module, a language model's `TokenPolicy` unless said otherwise.
    `live` names references that are asked again and again, as those of rollouts are.
    `states` are the hidden states of `initial` at the training rows, where it is not asked again.

    Raises:
        RecipeError: the objective reads a reference that nothing provides, or two tuners exclude each other.
    """
    refuse_excluded(tuners)
    wanted = {read.split(":")[1] for read in reads_of(objective) if read.startswith("logits:")} | set(live)
    if unknown := sorted(wanted - {"initial"}):
        raise unknown_reference(unknown[0])
    make = make or partial(TokenPolicy, temperature=temperature)
    frozen = None
    if wanted and not all(tuner.DISABLING_RESTORES_BASE for tuner in tuners):
        frozen = make(copy.deepcopy(module).requires_grad_(False).eval() if states is None else HeadOnly(module))
    module.requires_grad_(False)
    for tuner in tuners:
        trained = [p for p in module.parameters() if p.requires_grad]
        module = tuner.apply(module, tuner.plan(module, given))
        for parameter in trained:  # PEFT freezes all but its own
            parameter.requires_grad_(True)
    policy = make(module)
    policy.companions = objective.companions(policy)
    verify(policy)
    if wanted:
        off = Reference(policy, lambda: _without(tuners, policy.module)) if frozen is None else Reference(frozen)
        policy.references["initial"] = off if states is None else CachedReference(off, states)
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


def frozen_bytes(policy: Policy) -> int:
    """Bytes of what its references keep of the model as it was, beside the model itself."""
    modules = {id(one.policy): one.policy.module for one in policy.references.values() if one.policy is not policy}
    return sum(memory.weight_bytes(module) for module in modules.values())


@contextmanager
def _without(tuners: Sequence[Tuner], module: nn.Module) -> Iterator[Any]:
    with ExitStack() as stack:
        for tuner in tuners:
            stack.enter_context(tuner.disabled(module))
        yield
