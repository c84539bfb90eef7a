"""Base classes for judged answers: a loss per preference pair, or per answer that is labelled good or bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luthier.errors import RecipeError
from luthier.objectives.base import Objective, SequenceObjective, check_one_per
from luthier.objectives.views import SequenceView, sequence_view
from luthier.parts import lazy
from luthier.types import Batch, Term
from luthier.update import Update

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.models.policy import TokenPolicy
else:
    torch = lazy("torch")


@dataclass
class PairView:
    """One micro-batch of P preference pairs; row i of `chosen` and row i of `rejected` are a pair."""

    chosen: SequenceView
    rejected: SequenceView

    def meter(self, name: str, values: Tensor) -> None:
        """Report the mean of a value per pair [P] over the update."""
        self.chosen.update.meter(name, values.detach().sum(), "records")


class PairObjective(Objective):
    """A loss per preference pair from summed log-probabilities: write `pair_loss(view) -> [P]`.

    The meter `nll` is that of the chosen answers, per token.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("pairs",)
    UNIT: ClassVar[str] = "records"

    def pair_loss(self, view: PairView) -> Tensor:
        """Loss [P] of each pair of the micro-batch."""
        raise RecipeError(f"{type(self).__name__} does not define `pair_loss(self, view)`.")

    def units(self, batch: Batch) -> dict[str, float]:
        rows, columns = batch.targets()
        preferred = batch.streams["preferred"].values[batch.example_of[rows, columns]]
        return {**super().units(batch), "chosen_targets": float(preferred.double().sum())}

    def terms(self, policy: TokenPolicy, batch: Batch, update: Update) -> list[Term]:
        view = pair_view(policy, batch, update)
        update.meter("nll", -view.chosen.logprob.detach().sum(), "chosen_targets")
        return self.terms_of(view)

    def terms_of(self, view: PairView) -> list[Term]:
        """Hook: the summands of a micro-batch, divided by "records" (pairs) or "chosen_targets"."""
        loss = check_one_per(self.pair_loss(view), view.chosen.count, f"{type(self).__name__}.pair_loss", "pair")
        return [Term(loss.sum(), self.unit)]


def pair_view(policy: TokenPolicy, batch: Batch, update: Update) -> PairView:
    """One forward over the pairs of a micro-batch, whose rows may be in any order; a pair drawn twice is two pairs."""
    # One forward for both sides: the answers of a pair may share their prompt in a row of the batch.
    both = sequence_view(policy, batch, update)
    chosen: list[int] = []
    rejected: dict[str, list[int]] = {}
    for row, preferred in enumerate(batch.streams["preferred"].values.tolist()):
        if preferred == 1:
            chosen.append(row)
        else:
            rejected.setdefault(batch.records[row], []).append(row)
    partners = [rejected[batch.records[row]].pop() for row in chosen]
    device = batch.ids.device
    return PairView(
        both.index_select(torch.tensor(chosen, device=device)), both.index_select(torch.tensor(partners, device=device))
    )


class LabelObjective(SequenceObjective):
    """A loss per answer that is labelled good or bad: write `sequence_loss(view) -> [R]`; `good(view)` is the label.

    The loss is divided by the update's number of answers; a pair counts as two. The meter `nll` is that of the good
    answers, per token. `good` and `bad` count answers and are units of meters.
    """

    NEEDS: ClassVar[tuple[str, ...]] = ("labels",)
    UNIT: ClassVar[str] = "answers"

    def units(self, batch: Batch) -> dict[str, float]:
        rows, columns = batch.targets()
        owner = batch.example_of[rows, columns]
        good = batch.streams["preferred"].values == 1
        answers = owner.unique()  # an answer without targets (all truncated) is not in any count
        return {
            **super().units(batch),
            "answers": float(len(answers)),
            "good": float(good[answers].sum()),
            "bad": float((~good[answers]).sum()),
            "chosen_targets": float(good[owner].sum()),
        }

    def terms(self, policy: TokenPolicy, batch: Batch, update: Update) -> list[Term]:
        view = sequence_view(policy, batch, update)
        update.meter("nll", -view.logprob.detach()[good(view)].sum(), "chosen_targets")
        loss = check_one_per(self.sequence_loss(view), view.count, f"{type(self).__name__}.sequence_loss", "answer")
        return [Term((loss * (view.count > 0)).sum(), self.unit)]


def good(view: SequenceView) -> Tensor:
    """Whether each row is a good answer, bool [R]."""
    return view.streams["preferred"] == 1
