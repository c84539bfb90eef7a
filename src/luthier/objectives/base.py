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
    """A loss over batches. Verbs: `units`, `terms`.

    Hooks: `has_gradient`, `companions`, `start`, `prepare`, `micro_batch_context`, `update_terms`, `after_step`.

    MODALITY names the policy that it is given: "language", "contrastive" or "diffusion". NEEDS names what its data
    must have: "pairs" (of a chosen and a rejected answer), "labels" (each answer said to be good or bad; those of
    pairs are) or the FORM of another shape of several answers (`data/forms/`); without it such data give their good
    answers alone.
    DETACHED names what the loss takes as constant although it depends on the weights (a detached weight), under the
    first of SETTINGS; an objective without it has a gradient that is the derivative of its loss. WHOLE_ROWS says that
    it looks at positions that are no targets: its records then never share a prompt in a batch. READS_TARGETS = False
    says that it looks at the distributions at its targets and never asks which token stands there.
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
        """What the loss is divided by: UNIT, unless an option chooses."""
        return self.UNIT

    @property
    def reads(self) -> tuple[str, ...]:
        """The streams and references that it needs: READS, unless options choose."""
        return self.READS

    @property
    def needs_adapter(self) -> bool:
        """Whether it needs a tuner that adds a low-rank adapter; False, unless options choose."""
        return False

    def units(self, batch: Batch) -> dict[str, float]:
        """Counts that terms may be divided by, from ids and streams only; without tokens there are records alone."""
        if "weights" not in batch.streams:
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
        """The summands of this micro-batch's loss."""
        raise RecipeError(
            f"{type(self).__name__} has no loss: write `token_loss` (TokenObjective), `sequence_loss`"
            " (SequenceObjective) or `terms`."
        )

    def companions(self, policy: Any) -> dict[str, Companion]:
        """Hook: modules to train beside the model, by name; made before the optimiser."""
        return {}

    def start(self, policy: Any) -> Any:
        """Hook: mutable state, or None. It needs `state_dict() -> {name: Tensor}` and `load_state_dict`."""
        return None

    def prepare(self, policy: Any, update: Update) -> None:
        """Hook: look at all micro-batches of the update before the first training forward."""

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

    Each value is multiplied by the position's weight and the sum divided by the update's global count of
    `unit` ("targets", "weights" or "records"; a mean per record divides by `view.record_targets` first).
    """

    def token_loss(self, view: TokenView) -> Tensor:
        """Loss [n] of each target position of the chunk, before weights."""
        raise RecipeError(f"{type(self).__name__} does not define `token_loss(self, view)`.")

    def terms(self, policy: TokenPolicy, batch: Batch, update: Update) -> list[Term]:
        hidden = policy.hidden(batch)
        total = token_pass(policy, batch, update, [(self, 1.0)], hidden)
        return [Term(total, self.unit), *self.hidden_terms(policy, batch, hidden, update)]

    def hidden_terms(self, policy: TokenPolicy, batch: Batch, hidden: Tensor, update: Update) -> list[Term]:
        """Hook: terms of the hidden states [N,D] that the head reads, besides the token loss."""
        return []

    def weighted(self, view: TokenView) -> Tensor:
        """token_loss × weights, with the shape checked once and for all."""
        loss = self.token_loss(view)
        if not hasattr(loss, "shape") or loss.shape != view.targets.shape:
            found = tuple(loss.shape) if hasattr(loss, "shape") else type(loss).__name__
            raise RecipeError(
                f"{type(self).__name__}.token_loss returned {found}; expected one value per target,"
                f" {tuple(view.targets.shape)}.",
                "Return the per-token values, without sum or mean: the engine divides by the global count.",
            )
        return loss * view.weights


class SequenceObjective(Objective):
    """A loss per record from summed log-probabilities: write `sequence_loss(view) -> [R]`."""

    UNIT: ClassVar[str] = "records"

    def sequence_loss(self, view: SequenceView) -> Tensor:
        """Loss [R] of each record of the micro-batch."""
        raise RecipeError(f"{type(self).__name__} does not define `sequence_loss(self, view)`.")

    def terms(self, policy: TokenPolicy, batch: Batch, update: Update) -> list[Term]:
        view = sequence_view(policy, batch, update)
        update.meter("nll", -view.logprob.detach().sum(), "targets")
        loss = check_one_per(self.sequence_loss(view), view.count, f"{type(self).__name__}.sequence_loss", "record")
        return [Term((loss * (view.count > 0)).sum(), self.unit)]


class CoupledObjective(Objective):
    """A loss in which the records of an update meet: write `features` and `coupled_loss`.

    The engine gathers the features of all micro-batches and ranks, takes the loss once, and brings its gradient
    back to each record in a second forward: exact under any split.
    """

    COUPLES: ClassVar[bool] = True
    UNIT: ClassVar[str] = "records"

    def features(self, policy: Any, batch: Batch) -> dict[str, Tensor]:
        """What the loss needs of each of the batch's R records: name → [R,...], without sums over records."""
        raise RecipeError(f"{type(self).__name__} does not define `features(self, policy, batch)`.")

    def coupled_loss(self, features: dict[str, Tensor], streams: dict[str, Tensor], update: Update) -> list[Term]:
        """Terms from the features and row streams of all records of the update, in one order of records."""
        raise RecipeError(f"{type(self).__name__} does not define `coupled_loss(self, features, streams, update)`.")

    def terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        """A sum of value 0 whose gradient is the coupled loss's: its coefficient is in `feature_grads`."""
        feature_grads = update.feature_grads_of(self, batch)
        if not feature_grads:
            return []
        with update.repeatable(batch):
            features = self.features(policy, batch)
        terms = []
        for name, grad in feature_grads.items():
            if features[name].requires_grad:
                values = features[name].to(grad.dtype)
                terms.append(Term(((values - values.detach()) * grad).sum(), None))
        return terms


def check_one_per(loss: Any, count: Tensor, verb: str, what: str) -> Tensor:
    """The loss, if it has one value for each of these."""
    if not hasattr(loss, "shape") or loss.shape != count.shape:
        found = getattr(loss, "shape", type(loss).__name__)
        raise RecipeError(f"{verb} returned {found}; expected one value per {what}, {tuple(count.shape)}.")
    return loss


def _records(batch: Batch, rows: Sequence[int]) -> int:
    """Records that these rows make up, each as often as it was drawn: an update may be larger than the data set."""
    times: dict[str, int] = {}
    for (record, _), count in Counter((batch.records[row], batch.examples[row]) for row in rows).items():
        times[record] = max(times.get(record, 0), count)
    return sum(times.values())


def total_of(terms: Iterable[Term], counts: Mapping[str, float]) -> Tensor | None:
    """Σ coefficient × total / count; a unit whose global count is 0 contributes nothing. None without any term."""
    pieces = [
        term.coefficient * term.total / (1.0 if term.unit is None else counts[term.unit])
        for term in terms
        if term.unit is None or counts[term.unit]
    ]
    return torch.stack([piece.reshape(()) for piece in pieces]).sum() if pieces else None
