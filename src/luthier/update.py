"""One update of a training as objectives and tuners see it: its rows, counts, gradients and what parts keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from luthier.parts import Part
from luthier.types import Batch, Row

if TYPE_CHECKING:
    from torch import Tensor


class PartNames:
    """The name of each part of a training, slot/kind/position: the same in every process that reads the recipe.

    Two members of a sum may have the same options and are then equal, so a part is recognised by being the same
    object. A part that another part builds during the training is named when its name is first asked for.
    """

    def __init__(self, named: Iterable[tuple[str, Part]] = ()):
        self._named = list(named)

    def __iter__(self) -> Iterator[tuple[str, Part]]:
        return iter(self._named)

    def of(self, part: Part) -> str:
        """The part's name."""
        for name, known in self._named:
            if known is part:
                return name
        name = f"unnamed/{part.kind}/{len(self._named)}"
        self._named.append((name, part))
        return name


@dataclass
class Update:
    """One update as objectives and tuners see it.

    Attributes:
        progress: the middle of this update's share of the budget, 0 to 1; `done` is its end.
        rows: all rows of the update, the same on every rank and under every cut.
        batches: this rank's micro-batches.
        without_gradient: micro-batches of rows whose loss has no gradient (`Objective.has_gradient`): they count in
            every denominator and no forward reads them.
        counts: units over all micro-batches and ranks, known before the first backward.
        gradient: name of a parameter → its complete, unclipped gradient, for tuners.
        optimizer_state: name of a parameter → what the optimiser keeps for it.
        sum_tensors: sums tensors over ranks, in place.
        repeatable: batch → a context in which dropout draws the same again, for coupled objectives.
        names, states, prepared, feature_grads: what parts keep, by the part's name; see the methods.
    """

    index: int
    seed: int
    progress: float = 0.0
    done: float = 0.0
    rows: Sequence[Row] = ()
    batches: Sequence[Batch] = ()
    without_gradient: Sequence[Batch] = ()
    counts: dict[str, float] = field(default_factory=dict)
    meters: dict[str, list[Any]] = field(default_factory=dict)
    names: PartNames = field(default_factory=PartNames)
    states: Mapping[str, Any] = field(default_factory=dict)
    gradient: Callable[[str], Tensor | None] = lambda name: None
    optimizer_state: Callable[[str], dict[str, Any]] = lambda name: {}
    prepared: dict[str, Any] = field(default_factory=dict)
    sum_tensors: Callable[[Iterable[Tensor]], None] = lambda tensors: None
    feature_grads: dict[str, list[dict[str, Tensor]]] = field(default_factory=dict)
    repeatable: Callable[[Batch], AbstractContextManager[Any]] = nullcontext

    def state_of(self, part: Part) -> Any:
        """What `part.start(policy)` returned; it travels with the checkpoints."""
        return self.states[self.names.of(part)]

    def set_prepared(self, part: Part, prepared: Any) -> None:
        """Keep what the part's `prepare` computed, for its losses of this update."""
        self.prepared[self.names.of(part)] = prepared

    def prepared_by(self, part: Part) -> Any:
        """What the part's `prepare` kept with `set_prepared`."""
        return self.prepared[self.names.of(part)]

    def set_feature_grads(self, part: Part, by_batch: list[dict[str, Tensor]]) -> None:
        """Keep a coupled loss's gradient with respect to the features of each of `batches`, in order."""
        self.feature_grads[self.names.of(part)] = by_batch

    def feature_grads_of(self, part: Part, batch: Batch) -> dict[str, Tensor]:
        """Feature → the coupled loss's gradient with respect to it, [R,...] of this micro-batch's R records."""
        index = next(index for index, known in enumerate(self.batches) if known is batch)
        return self.feature_grads[self.names.of(part)][index]

    def meter(self, name: str, total: Any, unit: str) -> None:
        """Add to a diagnostic that is reported as total / counts[unit]; reduced over ranks like a term.

        A tensor's value is read when the update is reported: on a GPU reading it here would wait for the whole forward.
        """
        summand = total.detach().double() if hasattr(total, "detach") else float(total)
        self.meters.setdefault(name, [unit, 0.0])[1] += summand
