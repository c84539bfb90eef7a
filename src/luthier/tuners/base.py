"""The base class of tuners, which choose and parameterise what is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    """A context in which these layers compute as before tuning: their attribute `enabled` is False inside."""
    disabled = list(layers)  # `layers` may be a generator, and is needed twice
    for layer in disabled:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in disabled:
            layer.enabled = True


@dataclass(frozen=True)
class TunerInputs:
    """What a tuner's `plan` may read: the seed of the run and its training rows."""

    seed: int = 0
    rows: Sequence[Row] = ()

    def first(self, count: int) -> list[Row]:
        """The first `count` rows in the order of training.

        Raises:
            RecipeError: there are no training rows.
        """
        if not self.rows:
            raise RecipeError("The tuner reads training records before it is applied, and there are none.")
        order = batches.data_order([row.id for row in self.rows], self.seed, 0)
        return [self.rows[index] for index in order[:count]]


class Tuner(Part):
    """Which parameters are trained, and how. Methods to write: `apply`, `save`, `merge`; the rest are hooks.

    EXCLUDES: tuners that this one cannot be combined with, itself included if it cannot be used twice.
    DISABLING_RESTORES_BASE: True if the model inside `disabled()` is the one before training; it then serves as its
    own reference. Without it a reference is a frozen copy.
    MERGES: False if the tuning cannot be folded into the weights. Such a tuner is used alone and trains last, and its
    `load` reads back what `save` wrote.
    SAVES_MODEL: False if `save` writes an adapter, without the model and its configuration.
    WHOLE_ROWS: True if the tuner reads positions that are not targets; the rows of a batch then never share a prompt.
    """

    SLOT: ClassVar[str] = "tuner"
    DISABLING_RESTORES_BASE: ClassVar[bool] = False
    EXCLUDES: ClassVar[tuple[str, ...]] = ()
    MERGES: ClassVar[bool] = True
    SAVES_MODEL: ClassVar[bool] = True
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
        """Numeric columns of the data that the tuner reads as row streams `field:<name>`, [R]."""
        return ()

    def ready(self, model: nn.Module) -> list[str]:
        """Hook: make a loaded model ready to be tuned, before anything is computed with it.

        Returns what was changed, in sentences; raises LuthierError for a model that cannot be tuned.
        """
        return []

    def plan(self, model: nn.Module, inputs: TunerInputs) -> dict[str, Any]:
        """Hook: choose masks, indices or the seed of an initialisation, from rows and seed; the argument of `apply`."""
        return {}

    def apply(self, model: nn.Module, plan: dict[str, Any]) -> nn.Module:
        """Set up the trained parameters and return the module to train; deterministic, given the plan.

        Raises:
            RecipeError: the model has no layers that the tuner can train.
        """
        raise RecipeError(f"{type(self).__name__} does not define `apply(self, model, plan)`.")

    def parameters(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters that the optimiser updates, each once."""
        return ((name, p) for name, p in model.named_parameters() if p.requires_grad)

    def reached(self, model: nn.Module) -> Iterator[tuple[Tensor, int]]:
        """Hook: weights of the untuned model that the training can change, and how many numbers it trains for each."""
        return ((parameter, parameter.numel()) for _, parameter in self.parameters(model))

    def left_out(self, model: nn.Module) -> Mapping[str, str]:
        """Hook: layers that the recipe asks for in general and that are not trained, and why."""
        return {}

    def disabled(self, model: nn.Module) -> AbstractContextManager[Any]:
        """A context in which the model computes without this tuner; only if DISABLING_RESTORES_BASE."""
        return nullcontext()

    def save(self, model: nn.Module, masters: dict[str, Tensor], folder: Path) -> None:
        """Write the trained model to `folder`, so that it loads without Luthier; `masters`: fp32 values by name."""
        raise RecipeError(f"{type(self).__name__} does not define `save(self, model, masters, folder)`.")

    def load(self, model: nn.Module, folder: Path) -> nn.Module:
        """Apply what `save` wrote to the model of `folder/base`; called for a folder with a `tuner.json`."""
        raise RecipeError(f"{type(self).__name__} does not define `load(self, model, folder)`.")

    def merge(self, model: nn.Module) -> nn.Module:
        """The base model's architecture with the tuning folded into its weights."""
        return model

    def refuse_merge(self, model: nn.Module) -> None:
        """Hook: raise LuthierError if `merge` would; called before the training if a later step needs the merge."""

    def optimizer(self, written: Any) -> Any:
        """Hook: an optimiser for this tuner's parameters, or None: the recipe's optimiser `written` updates them.

        An own optimiser reads the learning rate, and other options that it has, from `written`.
        """
        return None

    def start(self, policy: Any) -> Any:
        """Hook: mutable state, or None. The state needs `state_dict() -> {name: Tensor}` and `load_state_dict`."""
        return None

    def before_update(self, model: nn.Module, update: Update) -> None:
        """Hook: before the first training forward; called again when the update is repeated with less memory."""

    def units(self, batch: Batch) -> dict[str, float]:
        """Hook: {unit: count} of a micro-batch, to divide the tuner's terms by; summed over the update."""
        return {}

    def micro_batch_context(self, policy: Any, batch: Batch, update: Update) -> AbstractContextManager[Any]:
        """Hook: a context around forward and backward of one micro-batch, inside the objective's context."""
        return nullcontext()

    def terms(self, policy: Any, batch: Batch, update: Update) -> list[Term]:
        """Hook: summands of a micro-batch's loss, called after the objective's `terms`, in the same context."""
        return []

    def before_step(self, model: nn.Module, update: Update) -> None:
        """Hook: gradients are complete and not yet clipped."""

    def after_step(self, model: nn.Module, update: Update) -> None:
        """Hook: after the optimiser."""

    def update_terms(self, policy: Any, update: Update) -> list[Term]:
        """Hook: terms that do not depend on data, added once per update."""
        return []

    def finish(self, model: nn.Module) -> None:
        """Hook: at the end of training; not called when a run stops early and can be resumed."""
