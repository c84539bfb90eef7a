"""Weighted sums of objectives: built from a recipe; the streams and judgements that all members need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import parts
from luthier.errors import RecipeError
from luthier.objectives.base import CoupledObjective, Objective, TokenObjective
from luthier.objectives.views import token_pass
from luthier.types import Batch, Row, Term
from luthier.update import Update

if TYPE_CHECKING:
    from luthier.models.policy import Companion


class WeightedSum(Objective):
    """Σ coefficient × objective, in the recipe's order; token objectives share one pass of the output head.

    Each member keeps its own denominator (`unit`), so a coefficient means the same alone and in a sum.
    """

    members: tuple[tuple[Any, float], ...]

    def units(self, batch: Batch) -> dict[str, float]:
        counts: dict[str, float] = {}
        for objective, _ in self.members:
            counts |= objective.units(batch)
        return counts

    def has_gradient(self, row: Row) -> bool:
        return any(objective.has_gradient(row) for objective, _ in self.members)

    def terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        tokens = [(member, factor) for member, factor in self.members if isinstance(member, TokenObjective)]
        terms = self._token_terms(policy, batch, update, tokens) if tokens else []
        nll_reported = bool(tokens)
        for objective, coefficient in self.members:
            if isinstance(objective, TokenObjective):
                continue
            own_meters = replace(update, meters={})
            # The engine has multiplied the feature gradients of a coupled loss by its coefficient already.
            factor = 1.0 if isinstance(objective, CoupledObjective) else coefficient
            terms += _scaled(objective.terms(policy, batch, own_meters), factor)
            for name, (unit, total) in own_meters.meters.items():
                if name != "nll" or not nll_reported:  # all members have the same nll: report it once
                    update.meter(name, total, unit)
            nll_reported = nll_reported or "nll" in own_meters.meters
        return terms

    def _token_terms(
        self, policy: Any, batch: Batch, update: Update, members: Sequence[tuple[TokenObjective, float]]
    ) -> list[Term]:
        hidden = policy.hidden(batch)
        # One pass gives one total, so each member is divided by its own count inside the pass.
        factors = [(objective, coefficient / update.counts[objective.unit]) for objective, coefficient in members]
        terms = [Term(token_pass(policy, batch, update, factors, hidden), None)]
        for objective, coefficient in members:
            terms += _scaled(objective.hidden_terms(policy, batch, hidden, update), coefficient)
        return terms

    def companions(self, policy: Any) -> dict[str, Companion]:
        companions: dict[str, Companion] = {}
        for objective, _ in self.members:
            own = objective.companions(policy)
            if twice := sorted(companions.keys() & own.keys()):
                raise RecipeError(
                    f"Two objectives of a sum define a companion module called `{twice[0]}`.",
                    "Remove one of these objectives.",
                )
            companions |= own
        return companions

    def prepare(self, policy: Any, update: Update) -> None:
        for objective, _ in self.members:
            objective.prepare(policy, update)

    def micro_batch_context(self, policy: Any, batch: Batch, update: Update) -> AbstractContextManager[Any]:
        stack = ExitStack()
        for objective, _ in self.members:
            stack.enter_context(objective.micro_batch_context(policy, batch, update))
        return stack

    def update_terms(self, policy: Any, update: Update) -> list[Term]:
        terms: list[Term] = []
        for objective, coefficient in self.members:
            terms += _scaled(objective.update_terms(policy, update), coefficient)
        return terms

    def after_step(self, policy: Any, update: Update) -> None:
        for objective, _ in self.members:
            objective.after_step(policy, update)


def _scaled(terms: Iterable[Term], factor: float) -> list[Term]:
    return [Term(term.total, term.unit, term.coefficient * factor) for term in terms]


def build_objective(spec: Any, base: Path | None = None) -> Objective:
    """An objective from a recipe: a name, a block, or a list of {objective, coefficient} (a weighted sum).

    Args:
        base: folder of the recipe, from which paths of part files are resolved.

    Raises:
        RecipeError: no such objective, or an option that it does not have.
    """
    if not isinstance(spec, list):
        return parts.build("objective", spec, base)
    members = [(parts.build("objective", block["objective"], base), block["coefficient"]) for block in spec]
    return WeightedSum(members=tuple(members))


def weighted_members(objective: Objective) -> list[tuple[Objective, float]]:
    """The objective itself, or the members of a sum, with their coefficients."""
    return list(objective.members) if isinstance(objective, WeightedSum) else [(objective, 1.0)]


def members_of(objective: Objective) -> list[Objective]:
    """The objective itself, or the members of a sum, each followed by the objectives in its options (as lfu's base)."""
    if isinstance(objective, WeightedSum):
        nested, members = [member for member, _ in objective.members], []
    else:
        options = [getattr(objective, name) for name in type(objective).model_fields]
        nested, members = [option for option in options if isinstance(option, Objective)], [objective]
    for member in nested:
        members += members_of(member)
    return members


def reads_of(objective: Objective) -> tuple[str, ...]:
    """All streams and references that an objective and its members read, each once."""
    reads: dict[str, None] = {}  # a dict keeps the members' order, which a set would not
    for member in members_of(objective):
        reads |= dict.fromkeys(member.reads)
    return tuple(reads)


def judgement_of(objective: Objective) -> str:
    """The judgement of answers that the objective's NEEDS name, such as `pairs`; empty where answers are not judged.

    Raises:
        RecipeError: some members of a sum read bad answers and other members would learn these as if they were good;
            or two members need different data shapes (`pairs` and `labels` go together).
    """
    members = members_of(objective)
    judged = [member for member in members if member.NEEDS]
    if judged and len(judged) < len(members):
        other = next(member for member in members if member not in judged)
        raise RecipeError(
            f"`{judged[0].kind}` reads good and bad answers, and `{other.kind}` would learn both.",
            "Sum objectives that read both; `orpo` adds the likelihood of the chosen answers.",
        )
    distinct: dict[str, None] = {}
    for member in judged:
        distinct |= dict.fromkeys(member.NEEDS)
    needs = list(distinct)
    if len(needs) > 1 and set(needs) != {"pairs", "labels"}:
        raise RecipeError(
            f"The objectives of a sum read answers as `{needs[0]}` and as `{needs[1]}`.",
            "Sum objectives that read the same data shape.",
        )
    # Pairs hold a good and a bad answer each, so an objective that reads labels is served by pairs.
    return "pairs" if "pairs" in needs else next(iter(needs), "")
