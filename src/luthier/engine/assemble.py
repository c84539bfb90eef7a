"""The parts of one training: built once from the recipe, asked once for their needs, and applied to a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from luthier import parts
from luthier.engine.budget import Budget
from luthier.engine.estimate import weight_bytes
from luthier.engine.hidden_cache import CachedReference, HiddenStateCache
from luthier.engine.master_weights import MasterWeights, ParameterGroup
from luthier.errors import RecipeError, RunError
from luthier.models.checks import verify
from luthier.models.policy import Companion, HeadOnly, Policy, Reference, TokenPolicy
from luthier.objectives.base import Objective
from luthier.objectives.sum import build_objective, judgement_of, members_of, reads_of
from luthier.recipe import Recipe
from luthier.recipe.settings import TrainSettings
from luthier.select.base import Selector
from luthier.tuners.base import Tuner, TunerInputs
from luthier.update import PartNames


@dataclass(frozen=True)
class Parts:
    """The parts of one training. States belong to these very objects, so a training builds them once."""

    objective: Objective
    tuners: tuple[Tuner, ...]
    optimizer: Any
    schedule: Any
    selector: Selector | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Parts:
        """The parts that a recipe of one training names.

        Raises:
            RecipeError: a part or one of its options does not exist.
        """
        train, base = recipe.settings.train, recipe.base
        return cls(
            objective=build_objective(train.objective, base),
            tuners=tuple(build_tuners(recipe)),
            optimizer=parts.build("optimizer", train.optimizer, base),
            schedule=parts.build("schedule", train.schedule, base),
            selector=None if train.select is None else parts.build("selector", train.select, base),
        )

    @cached_property
    def needs(self) -> Needs:
        """The columns, references and fields that these parts read."""
        return Needs(self)

    @cached_property
    def names(self) -> PartNames:
        """slot/kind/position of every part that may keep state: members of the objective, tuners, selector.

        Older checkpoints number parts in this order.
        """
        slots = {
            "objective": members_of(self.objective),
            "tuner": self.tuners,
            "selector": [] if self.selector is None else [self.selector],
        }
        named = []
        for slot, members in slots.items():
            named += [(f"{slot}/{part.kind}/{position}", part) for position, part in enumerate(members)]
        return PartNames(named)

    def refuse_conflicts(self, modality: str) -> None:
        """Raise RecipeError for parts that exclude each other, or that do not work on a model of this modality."""
        self.refuse_modality(modality)
        refuse_excluded(self.tuners)
        refuse_other_rules(self.tuners, self.optimizer)

    def refuse_modality(self, modality: str) -> None:
        """Raise RecipeError for an objective, or a selector that reads the model, of another modality."""
        # A selector that never reads the model works on every modality.
        selectors = [self.selector] if self.selector is not None and self.selector.FORWARD else []
        for part in (*members_of(self.objective), *selectors):
            if modality != part.MODALITY:
                raise RecipeError(
                    f"`{part.kind}` works on models of the modality `{part.MODALITY}`; this one is `{modality}`."
                )

    def budget(self, recipe: Recipe) -> Budget:
        """The budget of a training with these parts; only the share that a selector keeps counts as trained."""
        budget = recipe.settings.budget
        keep = 1.0 if self.selector is None else self.selector.keep
        return Budget(budget.unit, budget.amount, keep)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Needs:
    """What the parts of a training read. Each part is asked once, when the answer is first needed."""

    parts: Parts

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """All streams and references that the objective reads."""
        return reads_of(self.parts.objective)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Columns of log-probabilities that the objective reads: `logprobs:<reference>`."""
        return tuple(read for read in self.reads if read.startswith("logprobs:"))

    @cached_property
    def candidate_columns(self) -> tuple[str, ...]:
        """Columns that the selector reads."""
        return () if self.parts.selector is None else tuple(self.parts.selector.reads())

    @cached_property
    def references(self) -> frozenset[str]:
        """References whose distributions the objective computes in every forward."""
        return frozenset(read.split(":")[1] for read in self.reads if read.startswith("logits:"))

    @cached_property
    def second_pass(self) -> str | None:
        """What the objective compares the model's forward with: a pass of a model too; None if with nothing."""
        for read in self.reads:
            if read == "old_logprobs":
                return "the log-probabilities of the model that sampled"
            if read.startswith(("logprobs:", "logits:")):
                return f"the reference `{read.split(':', 1)[1]}`"
        return None

    @cached_property
    def frozen_copy(self) -> bool:
        """Whether a reference must be a frozen copy, since disabling some tuner does not restore the base model."""
        return not all(tuner.DISABLING_RESTORES_BASE for tuner in self.parts.tuners)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Columns of the data, holding numbers, that the tuners read."""
        return tuple(name for tuner in self.parts.tuners for name in tuner.fields)

    @cached_property
    def whole_rows(self) -> str | None:
        """Kind of the first part that reads positions that are no targets, or None."""
        trained = (*members_of(self.parts.objective), *self.parts.tuners)
        return next((part.kind for part in trained if part.WHOLE_ROWS), None)

    @cached_property
    def judgement(self) -> str:
        """How answers must be judged: in pairs, each by a label, or not at all.

        Raises:
            RecipeError: members of the objective need different judgements.
        """
        return judgement_of(self.parts.objective)


def build_tuners(recipe: Recipe) -> list[Tuner]:
    """The recipe's tuners, in written order."""
    spec = recipe.settings.train.tuner
    return [parts.build("tuner", entry, recipe.base) for entry in (spec if isinstance(spec, list) else [spec])]


def tuned_policy(
    module: nn.Module,
    chosen: Parts,
    inputs: TunerInputs,
    make: Callable[[nn.Module], Any] = TokenPolicy,
    online: Collection[str] = (),
    states: HiddenStateCache | None = None,
) -> Any:
    """Apply the tuners, and bind the references that the objective reads.

    `initial` is the module inside the tuners' `disabled()` if all of them restore the base, else a frozen copy, made
    before the tuners change the module.

    Args:
        make: module → policy; references are policies of the same class.
        online: names of further references that are computed at every update, as rollouts need them.
        states: hidden states of `initial` at the training rows, if they are in a cache.

    Raises:
        RecipeError: the objective reads a reference that nothing provides, or two tuners exclude each other.
    """
    refuse_excluded(chosen.tuners)
    wanted = chosen.needs.references | set(online)
    if unknown := sorted(wanted - {"initial"}):
        raise unknown_reference(unknown[0])
    frozen = None
    if wanted and chosen.needs.frozen_copy:
        # With hidden states in a cache the reference needs a head only, not a second model in memory.
        frozen = make(copy.deepcopy(module).requires_grad_(False).eval() if states is None else HeadOnly(module))
    module = apply_tuners(module, chosen.tuners, inputs)
    policy = make(module)
    policy.companions = chosen.objective.companions(policy)
    verify(policy)
    if wanted:
        disabled = Reference(policy, lambda: _disabled(chosen.tuners, policy.module))
        initial = disabled if frozen is None else Reference(frozen)
        policy.references["initial"] = initial if states is None else CachedReference(initial, states)
    return policy


def apply_tuners(module: nn.Module, tuners: Sequence[Tuner], inputs: TunerInputs) -> nn.Module:
    """The module to train, with all tuners applied in order; every tuner's parameters require gradients."""
    # Everything is frozen first, so that exactly what a tuner trains requires a gradient.
    module.requires_grad_(False)
    for tuner in tuners:
        trained = [p for p in module.parameters() if p.requires_grad]
        module = tuner.apply(module, tuner.plan(module, inputs))
        for parameter in trained:  # PEFT freezes all parameters but its own
            parameter.requires_grad_(True)
    return module


def master_weights(policy: Policy, chosen: Parts) -> MasterWeights:
    """Master copies and optimisers of the tuners' parameters and of the objective's companions.

    Raises:
        RunError: the tuners leave nothing to train.
    """
    named, own_rules = {}, {}
    for tuner in chosen.tuners:
        parameters = dict(tuner.parameters(policy.module))
        named |= parameters
        rule = tuner.optimizer(chosen.optimizer)
        if rule is not None:
            own_rules |= dict.fromkeys(parameters, rule)
    if not named:
        raise RunError("The tuner leaves nothing to train.")
    companions = [_group(name, companion) for name, companion in policy.companions.items()]
    return MasterWeights(named.items(), chosen.optimizer, companions, own_rules)


def _group(name: str, companion: Companion) -> ParameterGroup:
    """A companion's parameters under names that no model has."""
    named = {f"companion/{name}/{key}": p for key, p in companion.module.named_parameters() if p.requires_grad}
    return ParameterGroup(named, companion.rate)


def refuse_excluded(tuners: Sequence[Tuner]) -> None:
    """Raise RecipeError for tuners that cannot be combined."""
    for position, tuner in enumerate(tuners):
        for other in [*tuners[:position], *tuners[position + 1 :]]:
            if other.kind in tuner.EXCLUDES:
                raise RecipeError(f"The tuners `{tuner.kind}` and `{other.kind}` cannot be combined.")
            if not tuner.MERGES:
                raise RecipeError(
                    f"The tuners `{tuner.kind}` and `{other.kind}` cannot be combined: the result of several is one"
                    f" merged model, and what `{tuner.kind}` learns cannot be merged."
                )


def refuse_other_rules(tuners: Sequence[Tuner], optimizer: Any) -> None:
    """Raise RecipeError if the recipe names an optimiser and a tuner has an update rule of its own."""
    own = [tuner for tuner in tuners if tuner.optimizer(optimizer) is not None]
    default = TrainSettings.model_fields["optimizer"].default["kind"]
    if own and optimizer.kind != default:
        raise RecipeError(
            f"The tuner `{own[0].kind}` has an update rule of its own and does not use `{optimizer.kind}`.",
            f"Leave train.optimizer.kind at `{default}`: the rule uses its learning rate, decay and clipping.",
        )


def unknown_reference(name: str) -> RecipeError:
    """The error for an objective that reads a reference which does not exist."""
    return RecipeError(f"The objective reads a reference called `{name}`.", "Known: `initial`.")


def frozen_bytes(policy: Policy) -> int:
    """Bytes of frozen copies that the policy's references keep of the model or its head."""
    # Several references may share a copy.
    frozen = {id(reference.policy): reference.policy for reference in policy.references.values()}
    return sum(weight_bytes(other.module) for other in frozen.values() if other is not policy)


@contextmanager
def _disabled(tuners: Sequence[Tuner], module: nn.Module) -> Iterator[None]:
    with ExitStack() as stack:
        for tuner in tuners:
            stack.enter_context(tuner.disabled(module))
        yield
