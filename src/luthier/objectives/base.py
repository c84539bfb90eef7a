"""The family of objectives: the base classes that a loss is written from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.errors import RecipeError
from luthier.objectives.views import SequenceView, TokenView, sequence_view, token_pass
from luthier.parts import Part, lazy
from luthier.types import Batch, Row, Term
from luthier.update import Update

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from luthier.models.policy import Companion, TokenPolicy
else:
    torch = lazy("torch")


RENAMED_HOOKS = {"moves": "has_gradient", "scope": "micro_batch_context"}


class Objective(Part):
    """A loss over batches. Methods to write: `terms`, and `units` where the loss has a denominator of its own.

    Hooks: `has_gradient`, `companions`, `start`, `prepare`, `micro_batch_context`, `update_terms`, `after_step`.

    MODALITY: the kind of policy, "language", "contrastive" or "diffusion".
    NEEDS: the answers that the data must hold: "pairs" (a chosen and a rejected answer), "labels" (each answer is
    good or bad; pairs provide both) or the FORM of another data shape with several answers (`data/forms/`). An
    objective without NEEDS reads only the good answers of such data.
    READS: streams of the rows, `logprobs:<reference>` and `logits:<reference>`.
    UNIT: the count of the update that the loss is divided by, a key of `units`.
    DETACHED: quantities that depend on the weights and that the loss treats as constants, under the first of
    SETTINGS. Without DETACHED, `luthier check` compares the gradient with the derivative of the loss.
    WHOLE_ROWS: True where the loss reads positions that are not targets; the rows of a batch then never share a
    prompt. READS_TARGETS: False where the loss reads the distributions at the targets and not the target tokens.
    """

    SLOT: ClassVar[str] = "objective"
    MODALITY: ClassVar[str] = "language"
    READS: ClassVar[tuple[str, ...]] = ()
    DETACHED: ClassVar[tuple[str, ...]] = ()
    UNIT: ClassVar[str] = "targets"
    WHOLE_ROWS: ClassVar[bool] = False
    READS_TARGETS: ClassVar[bool] = True

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Refuse a hook under its old name, which nothing would call."""
        for old, new in RENAMED_HOOKS.items():
            if callable(vars(cls).get(old)):
                raise RecipeError(f"{cls.__name__} defines `{old}`, which is not called.", f"It is `{new}` now.")

    @property
    def unit(self) -> str:
        """The count that the loss is divided by: UNIT, unless an option chooses."""
        return self.UNIT

    @property
    def reads(self) -> tuple[str, ...]:
        """The streams and references that the loss reads: READS, unless options choose."""
        return self.READS

    @property
    def needs_adapter(self) -> bool:
        """Whether the tuner must add a low-rank adapter; False, unless options choose."""
        return False

    def units(self, batch: Batch) -> dict[str, float]:
        """Counts of a micro-batch that terms may be divided by: {unit: count}; the engine sums them over the update.

        They depend on ids and streams alone, since the engine needs them before the first forward.
        """
        if "weights" not in batch.streams:  # a batch without tokens (images, latents) counts records alone
            return {"records": float(len(batch.examples))}
        rows, columns = batch.targets()
        weights = batch.weights[rows, columns]
        return {
            "targets": float(len(rows)),
            "weights": float(weights.double().sum()),
            "records": float(_records(batch, batch.example_of[rows, columns].unique().tolist())),
        }

    def has_gradient(self, row: Row) -> bool:
        """Hook: False for a row whose loss has no gradient at any weights: the row is counted and never forwarded."""
        return True

    def terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        """The summands of this micro-batch's loss: sums over rows or positions, each with the unit that divides it.

        Raises:
            RecipeError: the class defines no loss.
        """
        raise RecipeError(
            f"{type(self).__name__} has no loss: write `token_loss` (TokenObjective), `sequence_loss`"
            " (SequenceObjective) or `terms`."
        )

    def companions(self, policy: Any) -> dict[str, Companion]:
        """Hook: {name: module} to train together with the model; called before the optimiser is built."""
        return {}

    def start(self, policy: Any) -> Any:
        """Hook: mutable state, or None. The state needs `state_dict() -> {name: Tensor}` and `load_state_dict`."""
        return None

    def prepare(self, policy: Any, update: Update) -> None:
        """Hook: read all micro-batches of the update before the first training forward."""

    def micro_batch_context(self, policy: Any, batch: Batch, update: Update) -> AbstractContextManager[Any]:
        """Hook: a context around forward and backward of one micro-batch."""
        return nullcontext()

    def update_terms(self, policy: Any, update: Update) -> list[Term]:
        """Hook: terms that do not depend on data, added once per update."""
        return []

    def after_step(self, policy: Any, update: Update) -> None:
        """Hook: after the optimiser."""


class TokenObjective(Objective):
    """A loss that is a sum over target positions: write `token_loss(view) -> [n]`.

    The engine multiplies each position's loss by its token weight and divides the sum by the update's global count
    of `unit`: "targets", "weights" or "records". A mean per row divides by `view.record_targets` first.
    """

    def token_loss(self, view: TokenView) -> Tensor:
        """Loss [n] of each target position of the chunk, before weights."""
        raise RecipeError(f"{type(self).__name__} does not define `token_loss(self, view)`.")

    def terms(self, policy: TokenPolicy, batch: Batch, update: Update) -> list[Term]:
        hidden = policy.hidden(batch)
        total = token_pass(policy, batch, update, [(self, 1.0)], hidden)
        return [Term(total, self.unit), *self.hidden_terms(policy, batch, hidden, update)]

    def hidden_terms(self, policy: TokenPolicy, batch: Batch, hidden: Tensor, update: Update) -> list[Term]:
        """Hook: further terms, of the hidden states [N,D] that the output head reads."""
        return []

    def weighted(self, view: TokenView) -> Tensor:
        """token_loss × weights, [n].

        Raises:
            RecipeError: `token_loss` did not return one value per target.
        """
        loss = self.token_loss(view)
        if not hasattr(loss, "shape") or loss.shape != view.targets.shape:
            returned = tuple(loss.shape) if hasattr(loss, "shape") else type(loss).__name__
            raise RecipeError(
                f"{type(self).__name__}.token_loss returned {returned}; expected one value per target,"
                f" {tuple(view.targets.shape)}.",
                "Return the per-token values, without sum or mean: the engine divides by the global count.",
            )
        return loss * view.weights


class SequenceObjective(Objective):
    """A loss per row from summed log-probabilities: write `sequence_loss(view) -> [R]`."""

    UNIT: ClassVar[str] = "records"

    def sequence_loss(self, view: SequenceView) -> Tensor:
        """Loss [R] of each of the micro-batch's R rows."""
        raise RecipeError(f"{type(self).__name__} does not define `sequence_loss(self, view)`.")

    def terms(self, policy: TokenPolicy, batch: Batch, update: Update) -> list[Term]:
        view = sequence_view(policy, batch, update)
        update.meter("nll", -view.logprob.detach().sum(), "targets")
        loss = check_one_per(self.sequence_loss(view), view.count, f"{type(self).__name__}.sequence_loss", "record")
        # A row without targets is in no count of `units`, so its loss must not enter the sum either.
        return [Term((loss * (view.count > 0)).sum(), self.unit)]


class CoupledObjective(Objective):
    """A loss that compares the records of an update with one another: write `features` and `coupled_loss`.

    The engine gathers the features of all micro-batches and ranks, computes the loss and ∂loss/∂features once, and
    runs each micro-batch forward again to backpropagate that gradient (gradient caching, arXiv 2101.06983). The
    gradient is exact however the update is split.
    """

    COUPLES: ClassVar[bool] = True
    UNIT: ClassVar[str] = "records"

    def features(self, policy: Any, batch: Batch) -> dict[str, Tensor]:
        """Features of the batch's R records: {name: [R,...]}. Each row depends on its own record alone."""
        raise RecipeError(f"{type(self).__name__} does not define `features(self, policy, batch)`.")

    def coupled_loss(self, features: dict[str, Tensor], streams: dict[str, Tensor], update: Update) -> list[Term]:
        """Terms from the features and row streams of all records of the update; row i of each is the same record."""
        raise RecipeError(f"{type(self).__name__} does not define `coupled_loss(self, features, streams, update)`.")

    def terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        """Terms of value 0 whose gradient is the coupled loss's; coefficients are already in `feature_grads`."""
        feature_grads = update.feature_grads_of(self, batch)
        if not feature_grads:
            return []
        with update.repeatable(batch):
            features = self.features(policy, batch)
        terms = []
        for name, grad in feature_grads.items():
            if features[name].requires_grad:
                values = features[name].to(grad.dtype)
                # f - sg[f] is 0, so the reported loss stays that of `coupled_loss`; its derivative is `grad`.
                terms.append(Term(((values - values.detach()) * grad).sum(), None))
        return terms


def check_one_per(loss: Any, count: Tensor, method: str, unit: str) -> Tensor:
    """The loss, if its shape is that of `count`.

    Raises:
        RecipeError: it has another shape; the message names the method and what it returns one value per.
    """
    if not hasattr(loss, "shape") or loss.shape != count.shape:
        returned = getattr(loss, "shape", type(loss).__name__)
        raise RecipeError(f"{method} returned {returned}; expected one value per {unit}, {tuple(count.shape)}.")
    return loss


def _records(batch: Batch, rows: Sequence[int]) -> int:
    """Number of records that these rows come from; a record counts as often as it was drawn.

    An update may be larger than the data set, so the same record may be drawn twice. Each of its examples then occurs
    twice, hence the largest count of one example is the number of draws.
    """
    draws: dict[str, int] = {}
    for (record, _), count in Counter((batch.records[row], batch.examples[row]) for row in rows).items():
        draws[record] = max(draws.get(record, 0), count)
    return sum(draws.values())


def total_of(terms: Iterable[Term], counts: Mapping[str, float]) -> Tensor | None:
    """Σ coefficient × total / count, a scalar; None if there is no term.

    A term whose unit has a global count of 0 is skipped: no row of the update has such a unit.
    """
    pieces: list[Tensor] = []
    for term in terms:
        count = 1.0 if term.unit is None else counts[term.unit]
        if count:
            pieces.append((term.coefficient * term.total / count).reshape(()))
    return torch.stack(pieces).sum() if pieces else None
