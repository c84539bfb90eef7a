"""Sums of objectives: built from a recipe, and what all members of one read and need."""

from __future__ import annotations

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
    """Σ coefficient × objective, in written order; token objectives share one pass of the head."""

    members: tuple[tuple[Any, float], ...]

    def units(self, batch: Batch) -> dict[str, float]:
        return {name: n for objective, _ in self.members for name, n in objective.units(batch).items()}

    def has_gradient(self, row: Row) -> bool:
        return any(objective.has_gradient(row) for objective, _ in self.members)

    def terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        tokens = any(isinstance(objective, TokenObjective) for objective, _ in self.members)
        terms = self._token_terms(policy, batch, update) if tokens else []
        nll_known = bool(tokens)
        for objective, coefficient in self.members:
            if isinstance(objective, TokenObjective):
                continue
            aside = replace(update, meters={})
            factor = 1.0 if isinstance(objective, CoupledObjective) else coefficient
            own = objective.terms(policy, batch, aside)
            terms += [Term(term.total, term.unit, term.coefficient * factor) for term in own]
            for name, (unit, total) in aside.meters.items():
                if name != "nll" or not nll_known:  # every member sees the same: report it once
                    update.meter(name, total, unit)
            nll_known = nll_known or "nll" in aside.meters
        return terms

    def _token_terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        tokens = [(o, c) for o, c in self.members if isinstance(o, TokenObjective)]
        hidden = policy.hidden(batch)
        shared = token_pass(policy, batch, update, [(o, c / update.counts[o.unit]) for o, c in tokens], hidden)
        return [Term(shared, None)] + [
            Term(term.total, term.unit, term.coefficient * coefficient)
            for objective, coefficient in tokens
            for term in objective.hidden_terms(policy, batch, hidden, update)
        ]

    def companions(self, policy: Any) -> dict[str, Companion]:
        found: dict[str, Companion] = {}
        for objective, _ in self.members:
            own = objective.companions(policy)
            if twice := sorted(found.keys() & own.keys()):
                raise RecipeError(
                    f"Two objectives of a sum bring a companion called `{twice[0]}`.", "Keep one of them."
                )
            found |= own
        return found

    def prepare(self, policy: Any, update: Update) -> None:
        for objective, _ in self.members:
            objective.prepare(policy, update)

    def micro_batch_context(self, policy: Any, batch: Batch, update: Update) -> AbstractContextManager[Any]:
        stack = ExitStack()
        for objective, _ in self.members:
            stack.enter_context(objective.micro_batch_context(policy, batch, update))
        return stack

    def update_terms(self, policy: Any, update: Update) -> list[Term]:
        return [
            Term(term.total, term.unit, term.coefficient * coefficient)
            for objective, coefficient in self.members
            for term in objective.update_terms(policy, update)
        ]

    def after_step(self, policy: Any, update: Update) -> None:
        for objective, _ in self.members:
            objective.after_step(policy, update)


def build_objective(spec: Any, base: Path | None = None) -> Objective:
    """An objective from a recipe: a name, a block, or a list of {objective, coefficient} (a weighted sum)."""
    if not isinstance(spec, list):
        return parts.build("objective", spec, base)
    return WeightedSum(
        members=tuple((parts.build("objective", item["objective"], base), item["coefficient"]) for item in spec)
    )


def weighted_members(objective: Objective) -> list[tuple[Objective, float]]:
    """The objective itself, or the members of a sum, with their coefficients."""
    return list(objective.members) if isinstance(objective, WeightedSum) else [(objective, 1.0)]


def members_of(objective: Objective) -> list[Objective]:
    """The objective itself, or the members of a sum, each followed by the objectives that its options hold."""
    if isinstance(objective, WeightedSum):
        return [found for member, _ in weighted_members(objective) for found in members_of(member)]
    options = (getattr(objective, name) for name in type(objective).model_fields)
    return [objective, *(found for held in options if isinstance(held, Objective) for found in members_of(held))]


def reads_of(objective: Objective) -> tuple[str, ...]:
    """All streams and references an objective reads."""
    return tuple(dict.fromkeys(read for member in members_of(objective) for read in member.reads))


def judgement_of(objective: Objective) -> str:
    """How the answers that the objective reads must be judged: what its NEEDS name, such as `pairs`; or not at all.

    Raises:
        RecipeError: some members of a sum read bad answers and others do not, which would learn them too; or two
            read answers of different forms, other than `pairs` and `labels`.
    """
    members = members_of(objective)
    judged = [member for member in members if member.NEEDS]
    if judged and len(judged) < len(members):
        other = next(member for member in members if member not in judged)
        raise RecipeError(
            f"`{judged[0].kind}` reads good and bad answers, and `{other.kind}` would learn both.",
            "Sum objectives that read both; `orpo` adds the likelihood of the chosen answers.",
        )
    needs = list(dict.fromkeys(need for member in judged for need in member.NEEDS))
    if len(needs) > 1 and set(needs) != {"pairs", "labels"}:
        raise RecipeError(
            f"The objectives of a sum read answers as `{needs[0]}` and as `{needs[1]}`.",
            "Sum objectives that read one.",
        )
    return "pairs" if "pairs" in needs else next(iter(needs), "")
