"""What a training can change: the kinds of the model's weights, and how much of each the tuners reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from luthier.models.kinds import EXPERTS, STACKED, Weight
from luthier.tuners.base import Tuner


@dataclass(frozen=True)
class Reach:
    """A kind of weights: their number, their share of the model, the share that the tuners reach, numbers trained."""

    kind: str
    weights: int
    share: float
    reached: float
    trained: int


@dataclass(frozen=True)
class LeftOut:
    """Layers that the recipe asks for in general and that are not trained, for one reason."""

    reason: str
    layers: int
    first: str


@dataclass(frozen=True)
class Trains:
    """The kinds in order of their share, and what is left out; `tuner` names the tuners."""

    tuner: str
    kinds: tuple[Reach, ...]
    left_out: tuple[LeftOut, ...]

    def to_json(self) -> dict[str, Any]:
        """For run.json."""
        return asdict(self)

    def warnings(self) -> list[str]:
        """A sentence for each kind of stacked matrices that no tuner reaches, and each reason to leave layers out."""
        lines = []
        for kind in self.kinds:
            if kind.kind in (EXPERTS, STACKED) and not kind.reached:
                lines.append(
                    f"`{self.tuner}` trains none of the {kind.kind}, which are {kind.share:.0%} of the model's weights."
                )
        for left in self.left_out:
            lines.append(f"`{self.tuner}` leaves out {left.layers} layers: {left.reason}; the first is {left.first}.")
        return lines


def what_trains(weights: Sequence[Weight], tuners: Sequence[Tuner], module: nn.Module) -> Trains:
    """The kinds of weights and how much of each the tuners reach.

    Args:
        weights: of the model before the tuners changed it, as `weights_of` gives them.
        module: the model with the tuners applied.
    """
    trained: Counter[int] = Counter()
    left_out: dict[str, list[str]] = {}
    for tuner in tuners:
        for weight, numbers in tuner.reached(module):
            trained[id(weight)] += numbers
        for name, reason in tuner.left_out(module).items():
            left_out.setdefault(reason, []).append(name)
    kinds: dict[str, list[Weight]] = {}
    for weight in weights:
        kinds.setdefault(weight.kind, []).append(weight)
    total = sum(weight.numbers for weight in weights) or 1
    reaches = [_reach(kind, members, trained, total) for kind, members in kinds.items()]
    reaches.sort(key=lambda reach: -reach.weights)
    reasons = tuple(LeftOut(reason, len(names), names[0]) for reason, names in left_out.items())
    return Trains("+".join(tuner.kind for tuner in tuners), tuple(reaches), reasons)


def _reach(kind: str, members: Sequence[Weight], trained: Counter[int], total: int) -> Reach:
    numbers = sum(weight.numbers for weight in members)
    reached = sum(weight.numbers for weight in members if trained[id(weight.tensor)])
    count = sum(trained[id(weight.tensor)] for weight in members)
    return Reach(kind, numbers, numbers / total, reached / numbers if numbers else 0.0, count)
