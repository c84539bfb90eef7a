"""The family of tuners."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.errors import RecipeError
from luthier.parts import Part, lazy
from luthier.types import Batch, Row, Term
from luthier.update import Update

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.data import batches
else:
    batches = lazy("luthier.data.batches")


@contextmanager
def disabled_layers(layers: Iterable[Any]) -> Iterator[None]:
    """A scope in which layers, whose `on` says whether their tuning counts, are as before."""
    chosen = list(layers)
    for layer in chosen:
        layer.on = False
    try:
        yield
    finally:
        for layer in chosen:
            layer.on = True


@dataclass(frozen=True)
class TunerInputs:
    """What a tuner may look at before it is applied: the seed of the run and its training rows."""

    seed: int = 0
    rows: Sequence[Row] = ()

    def first(self, count: int) -> list[Row]:
        """The rows that training would begin with.

        Raises:
            RecipeError: there are none.
        """
        if not self.rows:
            raise RecipeError("The tuner looks at training records before it is applied, and there are none.")
        order = batches.data_order([row.id for row in self.rows], self.seed, 0)
        return [self.rows[place] for place in order[:count]]


class Tuner(Part):
    """Which parameters move. Verbs: `apply`, `save`, `merge`; the rest are hooks.

    EXCLUDES names tuners that it cannot be combined with, itself included if it cannot be used twice.
    DISABLING_RESTORES_BASE says that inside `disabled()` the model is as it was before training, so that it serves as
    its own reference; without it a reference is a frozen copy. MERGES is False where the tuning cannot be folded into
    the weights: such a tuner stands alone, trains last, and its `save` is read back by its `load`. WHOLE_ROWS says
    that it looks at a batch's positions that are no targets: its records then never share a prompt in a batch.
    """

    SLOT: ClassVar[str] = "tuner"
    DISABLING_RESTORES_BASE: ClassVar[bool] = False
    EXCLUDES: ClassVar[tuple[str, ...]] = ()
    MERGES: ClassVar[bool] = True
    WHOLE_ROWS: ClassVar[bool] = False

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        """Refuse a hook under its old name, which nothing would call."""
        if callable(vars(cls).get("around")):
            raise RecipeError(
                f"{cls.__name__} defines `around`, which is not called.", "It is `micro_batch_context` now."
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns of the data, holding numbers, that it reads as row streams `field:<name>`."""
        return ()

    def plan(self, model: nn.Module, inputs: TunerInputs) -> dict[str, Any]:
        """Hook: choose what `apply` needs (masks, indices, the seed of an initialisation)."""
        return {}

    def apply(self, model: nn.Module, plan: dict[str, Any]) -> nn.Module:
        """Make the model trainable; deterministic given the plan. Returns the module to train."""
        raise RecipeError(f"{type(self).__name__} does not define `apply(self, model, plan)`.")

    def parameters(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimiser moves, each once."""
        return ((name, p) for name, p in model.named_parameters() if p.requires_grad)

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        """The model without this tuner, where DISABLING_RESTORES_BASE."""
        return nullcontext()

    def save(self, model: nn.Module, masters: dict[str, Tensor], folder: Path) -> None:
        """Write the result so that it loads without Luthier; `masters` are the fp32 values by name."""
        raise RecipeError(f"{type(self).__name__} does not define `save(self, model, masters, folder)`.")

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """Put what `save` left onto the model in `folder/base`; called where the folder has a `tuner.json`."""
        raise RecipeError(f"{type(self).__name__} does not define `load(self, model, folder)`.")

    def merge(self, model: nn.Module) -> nn.Module:
        """The plain model with the tuning folded in."""
        return model

    def optimizer(self, written: Any) -> Any:
        """Hook: what moves this tuner's parameters instead of the recipe's optimiser `written`, or None.

        A rule of its own takes the learning rate, and other options it has, from `written`.
        """
        return None

    def start(self, policy: Any) -> Any:
        """Hook: mutable state, or None. It needs `state_dict() -> {name: Tensor}` and `load_state_dict`."""
        return None

    def before_update(self, model: nn.Module, update: Update) -> None:
        """Hook: before the first forward that trains; again when the update is tried again with less memory."""

    def units(self, batch: Batch) -> dict[str, float]:
        """Hook: counts that its terms are divided by, summed over the update as an objective's are."""
        return {}

    def micro_batch_context(self, policy: Any, batch: Batch, update: Update) -> AbstractContextManager[Any]:
        """Hook: a context around forward and backward of one micro-batch, within that of the objective."""
        return nullcontext()

    def terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        """Hook: summands of a micro-batch's loss, asked for after the objective's, in the same scope."""
        return []

    def before_step(self, model: nn.Module, update: Update) -> None:
        """Hook: gradients are complete and not yet clipped."""

    def after_step(self, model: nn.Module, update: Update) -> None:
        """Hook: after the optimiser."""

    def update_terms(self, policy: Any, update: Update) -> list[Term]:
        """Hook: terms that do not depend on data, added once per update."""
        return []

    def finish(self, model: nn.Module) -> None:
        """Hook: at the true end of training, always."""
